# SPDX-License-Identifier: Apache-2.0
"""The command line: what it prints, which code it exits with, what it leaves behind."""
