# SPDX-License-Identifier: Apache-2.0
"""Codec tests state no time: a busy machine must not fail them."""

from collections.abc import Iterator
from unittest import mock

import pytest
from hypothesis import settings

from rarefy.store import compiled

settings.register_profile("store", deadline=None, max_examples=60)
settings.load_profile("store")


@pytest.fixture(autouse=True)
def _nothing_read() -> Iterator[None]:
    """Loading numba, once enough was read, takes memory that no test means to measure."""
    with mock.patch.object(compiled, "_read", 0):
        yield
