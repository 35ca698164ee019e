# SPDX-License-Identifier: Apache-2.0
"""The cost of an optimal prefix code, found without the coder."""

import heapq
from collections.abc import Iterable


def optimum(counts: Iterable[int]) -> int:
    """Bits of an optimal prefix code, by merging the two lightest nodes again and again."""
    heap = [int(count) for count in counts if count]
    heapq.heapify(heap)
    total = sum(heap) if len(heap) == 1 else 0
    while len(heap) > 1:
        merged = heapq.heappop(heap) + heapq.heappop(heap)
        total += merged
        heapq.heappush(heap, merged)
    return total
