# SPDX-License-Identifier: Apache-2.0
"""How values pass from call to call in one run of a network, seen through operators that work in place."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from rarefy.graph.calls import Call, Calls
from rarefy.quantize.kernels import Runtime, absorbs, kind


@dataclass(eq=False)
class Value:
    """A tensor at one moment: an operator that works in place makes a new value of the same tensor.

    Attributes:
        site: where a quantiser can be attached, or None; parts of one tensor share theirs.
        maker: the call that made it; None for inputs of the network.
        readers: calls that read it, silent ones looked through.
        leaves: whether it is an output of the network.
    """

    site: str | None
    maker: Call | None = None
    readers: list[Call] = field(default_factory=list)
    leaves: bool = False


@dataclass(frozen=True)
class Flow:
    """How the values that depend on the network's inputs pass through its calls.

    Attributes:
        values: in the order in which they are made.
        read: for the site of every call what it read, aligned with its inputs; None for constants.
    """

    values: tuple[Value, ...]
    read: dict[str, tuple[Value | None, ...]]


def flow_of(calls: Calls, floating: Collection[str], runtime: Runtime) -> Flow:
    """Follows the values of one run.

    Args:
        calls: of the run.
        floating: sites that give floats only, and inputs (``input#0``) that are floats.
        runtime: says which functions are silent or absorbed.
    """
    current: dict[int, Value] = {}
    values: list[Value] = []
    read: dict[str, tuple[Value | None, ...]] = {}

    def add(value: Value, number: int) -> None:
        current[number] = value
        values.append(value)

    consumers = calls.consumers()
    for i, number in enumerate(calls.inputs):
        name = f"input#{i}"
        add(Value(name if name in floating else None), number)
    for item in calls.calls:
        sources = tuple(current.get(number) for number in item.inputs)
        active = dict.fromkeys(source for source in sources if source is not None)
        alone = len(item.outputs) == 1 and len(active) == 1
        if alone and (
            item.function in runtime.silent or swallowed(item, calls, consumers, runtime)
        ):
            current[item.outputs[0]] = next(iter(active))
            continue
        read[item.site] = sources
        for source in active:
            source.readers.append(item)
        whole = len(item.outputs) == 1 or kind(item) in runtime.moving  # or the parts of one
        single = whole and item.site in floating
        for number in item.outputs if active else ():
            add(Value(item.site if single else None, item), number)
    for number in calls.outputs:
        if number in current:
            current[number].leaves = True
    return Flow(tuple(values), read)


def swallowed(
    item: Call, calls: Calls, consumers: Mapping[int, list[Call]], runtime: Runtime
) -> bool:
    """Whether a call becomes part of the kernels that read its result."""
    number = item.outputs[0]
    return number not in calls.outputs and absorbs(item, consumers.get(number, []), runtime)
