# SPDX-License-Identifier: Apache-2.0
"""Takes a trained network and a budget, returns the smallest network that still does its job."""

__version__ = "0.1.0"
