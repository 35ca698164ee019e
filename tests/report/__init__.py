# SPDX-License-Identifier: Apache-2.0
"""Tests of the report, with one invented run that they share."""
