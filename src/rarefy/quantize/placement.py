# SPDX-License-Identifier: Apache-2.0
"""Where quantisers must stand so that a runtime computes in integers, and which of them share a scale.

A runtime's integer kernel replaces a float operator only if every tensor that it reads comes off a
quantiser and, for most kernels, what it gives goes into one. So a tensor gets a quantiser if one of its
readers needs it or if the kernel that makes it does; all else stays float. A sum that no integer kernel
reads, as in a transformer's residual stream, stays float, too.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from rarefy.graph.calls import Call, Calls
from rarefy.quantize.flow import Flow, Value, flow_of
from rarefy.quantize.kernels import ONNXRUNTIME_CPU, Runtime, copies, gives_floats, kind, moves
from rarefy.quantize.streams import unrounded, worthwhile


@dataclass(frozen=True)
class Placement:
    """Where quantisers go.

    Attributes:
        groups: sites that share one scale, in the order of the network; most groups have one site.
        integer: sites of the calls that the runtime can replace by integer kernels.
        feeds: for calls with a quantised weight the module and the site of what it reads.
        float_ends: modules with a quantised weight that run once and whose result stays float.
        unrounded: pairs of a float call and a site whose value it reads as it is before the quantiser.
    """

    groups: tuple[tuple[str, ...], ...]
    integer: tuple[str, ...]
    feeds: tuple[tuple[str, str], ...]
    float_ends: tuple[str, ...]
    unrounded: tuple[tuple[str, str], ...] = ()


def place(
    calls: Calls,
    floating: Collection[str],
    quantised: Collection[str],
    excluded: Collection[str] = (),
    runtime: Runtime = ONNXRUNTIME_CPU,
) -> Placement:
    """Decides which sites get quantisers.

    Args:
        calls: of one run, batch norms folded and weights quantised.
        floating: see `flow_of`.
        quantised: paths of modules whose weight is quantised.
        excluded: paths of modules whose own calls stay float.
        runtime: the table of its kernels.
    """
    flow = flow_of(calls, floating, runtime)
    kernels = [
        item
        for item in calls.calls
        if item.module not in excluded
        and has_kernel(item, flow, quantised, runtime)
        and not only_leaves(item, flow, runtime)
    ]
    kernels = worthwhile(kernels, flow, runtime)
    integer = {item.site for item in kernels}
    wanted: dict[Value, None] = {}
    for value in flow.values:
        needed = any(reader.site in integer for reader in value.readers)
        if needed or must_leave(value, flow, integer, runtime):
            want(value, wanted, flow, runtime)
    found = (value.site for value in flow.values if value in wanted)
    sites = list(dict.fromkeys(site for site in found if site))
    links = [*unchanged(wanted, flow, runtime), *joined(wanted, flow, integer, runtime)]
    weighted = [item for item in kernels if kind(item) in runtime.weighted]
    feeds = [
        (item.module, value.site)
        for item in weighted
        for value in flow.read[item.site]
        if value is not None and value.site is not None
    ]
    runs = Counter(item.module for item in weighted)
    ends = [
        item.module
        for item in weighted
        if runs[item.module] == 1
        and not any(value in wanted for value in made_by(item, flow, runtime))
    ]
    raw = tuple(dict.fromkeys(unrounded(wanted, flow, integer, runtime)))
    ordered = tuple(sorted(integer))
    return Placement(grouped(sites, links), ordered, tuple(feeds), tuple(ends), raw)


def has_kernel(item: Call, flow: Flow, quantised: Collection[str], runtime: Runtime) -> bool:
    """Whether the runtime has an integer kernel for a call, and all that it reads can be quantised."""
    read = flow.read.get(item.site, ())
    active = [value for value in read if value is not None]
    if not active or any(value.site is None for value in active):
        return False
    if kind(item) in runtime.weighted:
        return len(active) == 1 and item.module in quantised
    if kind(item) in runtime.pairwise:
        return len(active) == len(read) >= 2
    return kind(item) in runtime.single and len(read) == 1


def only_leaves(item: Call, flow: Flow, runtime: Runtime) -> bool:
    """Whether a kernel that can't give floats would have to, because nothing but the caller reads it."""
    made, ends = [v for v in flow.values if v.maker is item], made_by(item, flow, runtime)
    clipped = bool(made) and vanishes(made[0], runtime)
    givable = runtime.quantised_ends or gives_floats(item, clipped, runtime)
    return not givable and all(value.leaves and not value.readers for value in ends)


def made_by(item: Call, flow: Flow, runtime: Runtime) -> list[Value]:
    """What a call gives, or what the clip gives that alone reads it."""
    made = [value for value in flow.values if value.maker is item]
    if made and vanishes(made[0], runtime):
        made = [value for value in flow.values if value.maker is made[0].readers[0]]
    return made


def must_leave(value: Value, flow: Flow, integer: Collection[str], runtime: Runtime) -> bool:
    """Whether a quantiser must stand here for the kernel before it to work in integers."""
    maker = value.maker
    if maker is None:
        return False
    if value.leaves and not value.readers and not runtime.quantised_ends:
        return False
    clipped = kind(maker) in runtime.clipping
    if clipped:
        source = flow.read[maker.site][0]
        if source is None or not vanishes(source, runtime):
            return False
        maker = source.maker
    elif vanishes(value, runtime):
        return False
    made = maker is not None and maker.site in integer
    return made and maker is not None and not gives_floats(maker, clipped, runtime)


def vanishes(value: Value, runtime: Runtime) -> bool:
    """Whether a value is only clipped, so that the quantiser stands behind the clip."""
    alone = len(value.readers) == 1 and not value.leaves
    return alone and kind(value.readers[0]) in runtime.clipping


def source_of(value: Value, flow: Flow) -> Value | None:
    """The one value that a call made this one from, or None if it read several or can't be quantised."""
    if value.maker is None:
        return None
    active = [source for source in flow.read[value.maker.site] if source is not None]
    return active[0] if len(active) == 1 and active[0].site is not None else None


def want(value: Value, wanted: dict[Value, None], flow: Flow, runtime: Runtime) -> None:
    """Asks for a quantiser on a value, and on what integer operators moved it from."""
    current: Value | None = value
    while current is not None and current.site is not None and current not in wanted:
        wanted[current] = None
        moved = current.maker is not None and moves(current.maker, runtime)
        current = source_of(current, flow) if moved else None


def unchanged(
    wanted: Collection[Value], flow: Flow, runtime: Runtime
) -> Iterator[tuple[str | None, str | None]]:
    """Pairs of sites between which values were only moved or copied."""
    for value in wanted:
        current: Value | None = value
        while current is not None and current.maker is not None:
            if not moves(current.maker, runtime) and not copies(current.maker, runtime):
                break
            current = source_of(current, flow)
            if current is not None and current in wanted:
                yield current.site, value.site
                break


def joined(
    wanted: Collection[Value], flow: Flow, integer: Collection[str], runtime: Runtime
) -> Iterator[tuple[str | None, str | None]]:
    """Pairs of a concatenation's result and an input that nothing but concatenations reads.

    Clipped and unclipped inputs stay apart: a clip vanishes only into a quantiser whose range ends where
    it does.
    """
    for value in wanted:
        maker = value.maker
        if maker is None or kind(maker) not in runtime.joining or maker.site not in integer:
            continue
        sources = [source for source in flow.read[maker.site] if source is not None]
        if len({is_clipped(source, flow, runtime) for source in sources}) > 1:
            continue
        for source in sources:
            if all(kind(reader) in runtime.joining for reader in source.readers):
                yield source.site, value.site


def is_clipped(value: Value, flow: Flow, runtime: Runtime) -> bool:
    """Whether a value comes from a clip, moved or not."""
    current: Value | None = value
    while current is not None and current.maker is not None and moves(current.maker, runtime):
        current = source_of(current, flow)
    return (
        current is not None
        and current.maker is not None
        and kind(current.maker) in runtime.clipping
    )


def grouped(
    sites: list[str], links: Iterable[tuple[str | None, str | None]]
) -> tuple[tuple[str, ...], ...]:
    """The sets of sites that are connected by links."""
    root = {site: site for site in sites}

    def find(site: str) -> str:
        while root[site] != site:
            site = root[site]
        return site

    for a, b in links:
        if a is not None and b is not None:
            root[find(b)] = find(a)
    groups: dict[str, list[str]] = {}
    for site in sites:
        groups.setdefault(find(site), []).append(site)
    return tuple(tuple(group) for group in groups.values())
