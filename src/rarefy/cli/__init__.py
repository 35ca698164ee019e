# SPDX-License-Identifier: Apache-2.0
"""The command line; torch is imported only when a network is really needed."""

from rarefy.cli.app import app, main

__all__ = ["app", "main"]
