# SPDX-License-Identifier: Apache-2.0
"""Published systems as recipes, one YAML file each."""
