# SPDX-License-Identifier: Apache-2.0
"""What stays float although a runtime could compute it in integers: residual streams of transformers.

A sum that only a norm reads gains nothing from integers, and the few channels that are much larger than all
others would cost the rest their precision (Dettmers et al.: LLM.int8(), 2022, arXiv 2208.07339, section 3).
"""

from collections.abc import Collection, Iterator

from rarefy.graph.calls import Call
from rarefy.quantize.flow import Flow, Value
from rarefy.quantize.kernels import Runtime, gives_floats, kind, passes


def worthwhile(kernels: list[Call], flow: Flow, runtime: Runtime) -> list[Call]:
    """The kernels without sums and poolings of floats that no integer kernel reads.

    A sum of what kernels have rounded already stays: it is cheaper in integers.
    """
    if runtime.quantised_ends:
        return kernels
    made = {value.maker.site: value for value in flow.values if value.maker is not None}

    def firm(item: Call) -> bool:
        return kind(item) in runtime.weighted or gives_floats(item, False, runtime)

    kept = {item.site for item in kernels if firm(item)}

    def read(value: Value) -> bool:
        return any(
            reader.site in kept
            or (passes(reader, runtime) and reader.site in made and read(made[reader.site]))
            for reader in value.readers
        )

    def rounded(value: Value | None) -> bool:
        maker = value.maker if value is not None else None
        if maker is None:
            return False
        if passes(maker, runtime):
            return any(rounded(source) for source in flow.read[maker.site])
        return maker.site in kept and not gives_floats(maker, False, runtime)

    before = -1
    while before < len(kept):
        before = len(kept)
        for item in kernels:
            if read(made[item.site]) or any(rounded(v) for v in flow.read[item.site]):
                kept.add(item.site)
    return [item for item in kernels if item.site in kept]


def unrounded(
    wanted: Collection[Value], flow: Flow, integer: Collection[str], runtime: Runtime
) -> Iterator[tuple[str, str]]:
    """Float calls with the sites that they read before the quantiser; none that work in place."""
    carried = {value.maker.site for value in wanted if value.maker is not None}
    for value in wanted:
        if value.maker is None or kind(value.maker) not in runtime.normalising:
            continue
        for reader in value.readers:
            own = not set(reader.inputs) & set(reader.outputs)
            moved = passes(reader, runtime) and reader.site in carried
            if own and not moved and reader.site not in integer and value.site is not None:
                yield reader.site, value.site
