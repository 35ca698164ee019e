# SPDX-License-Identifier: Apache-2.0
"""Codec tests state no time: a busy machine must not fail them."""

from hypothesis import settings

settings.register_profile("store", deadline=None, max_examples=60)
settings.load_profile("store")
