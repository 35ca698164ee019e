# SPDX-License-Identifier: Apache-2.0
"""Lets ``python -m rarefy`` be the command line."""

from rarefy.cli import main

main()
