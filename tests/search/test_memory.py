# SPDX-License-Identifier: Apache-2.0
"""Trials that were made before are known again, to the last bit; a foreign file is refused."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rarefy.errors import FileError
from rarefy.search.goal import Outcome
from rarefy.search.memory import Memory
from rarefy.search.space import ALLOCATIONS, REPAIRS, STORAGES, Candidate

CANDIDATES = st.builds(
    Candidate,
    st.floats(0.01, 1),
    st.sampled_from(ALLOCATIONS),
    st.sampled_from(STORAGES),
    st.integers(2, 8),
    st.sampled_from((*REPAIRS, "")),
    st.floats(1e-4, 1),
)
FINITE = st.floats(allow_nan=False, allow_infinity=False)


@given(st.dictionaries(CANDIDATES, st.builds(Outcome, FINITE, FINITE), max_size=4))
def test_outcomes_are_known_again(
    tmp_path_factory: pytest.TempPathFactory, tried: dict[Candidate, Outcome]
) -> None:
    path = tmp_path_factory.getbasetemp() / "search.json"
    path.unlink(missing_ok=True)
    for candidate, outcome in tried.items():
        memory = Memory(path)
        assert memory.get(candidate) is None
        memory.put(candidate, outcome)
    again = Memory(path)
    assert {candidate: again.get(candidate) for candidate in tried} == tried


@pytest.mark.parametrize("text", ["", "[", "[]", "3", '{"a": 3}', '{"a": ["x", 1]}'])
def test_a_foreign_file_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "search.json"
    path.write_text(text)
    with pytest.raises(FileError, match=r"holds no trials of a search .* delete it"):
        Memory(path)
