# SPDX-License-Identifier: Apache-2.0
"""Groups of one family shrink by the same share, as near to what was asked as whole units allow."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from rarefy.graph.coupling import couple
from rarefy.graph.families import even, link, steps

MEMBERS = st.dictionaries(
    st.sampled_from("abcdef"), st.tuples(st.integers(0, 2), st.integers(1, 24)), min_size=1
)


@given(MEMBERS, st.data())
def test_even_counts_keep_shares_and_leave_something(
    members: dict[str, tuple[int, int]], data: st.DataObject
) -> None:
    wanted = {n: data.draw(st.integers(0, size), label=n) for n, (_, size) in members.items()}
    found = even(wanted, members)
    for family in {f for f, _ in members.values()}:
        names = [n for n, (f, _) in members.items() if f == family]
        shares = {(found.get(n, 0) / members[n][1]) for n in names}
        assert max(shares) - min(shares) < 1e-12
        share = shares.pop()
        assert share < 1
        step = 1 / steps([members[n][1] for n in names])
        asked = sum(wanted[n] for n in names) / sum(members[n][1] for n in names)
        assert abs(share - min(asked, 1 - step)) <= step / 2 + 1e-9


def test_a_group_of_its_own_gets_what_it_asked_for() -> None:
    assert even({"a": 3, "b": 0}, {"a": (0, 7), "b": (1, 5)}) == {"a": 3}
    assert even({"a": 7}, {"a": (0, 7)}) == {"a": 6}


def test_steps_are_common_divisors() -> None:
    assert steps([8, 12]) == 4
    assert steps([7]) == 7
    assert steps([8, 3]) == 1
    assert even({"a": 8, "b": 3}, {"a": (0, 8), "b": (0, 3)}) == {}


def test_links_join_all_of_a_set() -> None:
    pairs: list[tuple[int, int]] = []
    link({4, 2, 7}, pairs)
    assert sorted(pairs) == [(2, 4), (2, 7)]
    link(set(), pairs)
    link({1}, pairs)
    assert len(pairs) == 2


class Doubled(nn.Module):
    """The second layer's size is computed from the first's: they can only shrink together."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.tied = tied
        self.a, self.b = nn.Linear(5, 4), nn.Linear(5, 8)
        self.c, self.d = nn.Linear(4, 2), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        y, z = self.a(x), self.b(x)
        n = 2 * y.shape[1] if self.tied else z.shape[1]
        return self.c(y) + self.d(z.reshape(-1, n))


def test_a_size_that_is_computed_from_another_ties_their_shares() -> None:
    x = torch.randn(3, 5)
    free, tied = couple(Doubled(False), x), couple(Doubled(True), x)
    assert len({g.family for g in free.groups}) == 2
    assert len({g.family for g in tied.groups}) == 1
    assert free.even({"a": 1, "b": 5}) == {"a": 1, "b": 5}
    assert tied.even({"a": 1, "b": 2}) == {"a": 1, "b": 2}
    assert tied.even({"b": 4}) == {"a": 1, "b": 2}
