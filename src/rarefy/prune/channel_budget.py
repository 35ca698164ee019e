# SPDX-License-Identifier: Apache-2.0
"""What a cut network costs, and the smallest cut that meets a budget.

Every probe cuts the network, looks, and puts everything back, so nothing is copied but what is sliced.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn

from rarefy.errors import ModelError
from rarefy.export.inputs import first_examples
from rarefy.export.onnx import export_onnx
from rarefy.export.onnxruntime import OnnxRuntime
from rarefy.graph.coupling import Coupling, couple
from rarefy.graph.proof import cut
from rarefy.graph.surgery import apply, plan
from rarefy.loops.progress import bar
from rarefy.measure.counts import macs, parameters
from rarefy.measure.latency import latency
from rarefy.prune.channel_allocation import Cuts
from rarefy.task import Inputs

Cost = Callable[[nn.Module], float]
LATENCY_LEVELS = 64  # finer steps of a cut than this drown in the noise of a clock


def cost_of(target: str, model: nn.Module, example: Inputs) -> Cost:
    """A function from network to its cost in the words of `target`.

    Args:
        target: ``"parameters"``, ``"macs"`` of one example, or ``"latency"``: the time of a batch of one in
            ONNX Runtime as a share of that of `model`, both measured side by side; the larger of the shares
            by the clock and by processor time.
        model: to compare with.
        example: batch first, on the model's device.
    """
    if target == "parameters":
        return parameters
    if target == "macs":
        return lambda network: macs(network, example)
    one = first_examples(example, 1)
    program = export_onnx(model, example).SerializeToString()
    original = OnnxRuntime(program)

    def relative(network: nn.Module) -> float:
        smaller = export_onnx(network, example).SerializeToString()
        if smaller == program:
            return 1.0
        found = latency(
            {"original": original, "cut": OnnxRuntime(smaller)}, one, rounds=60, budget=3.0
        )
        # on a busy machine one of the two may be lucky; both must agree that it is faster
        busy = found["cut"].cpu_median / max(found["original"].cpu_median, 1e-9)
        return max(found["cut"].ratio, busy)

    return relative


@contextmanager
def cut_for_a_while(model: nn.Module, coupling: Coupling, cuts: Cuts) -> Iterator[None]:
    """Makes a cut without proof, and takes it back."""
    chosen, removed, values, _ = plan(coupling, cuts)
    undo = apply(model, coupling, removed, values) if chosen else None
    try:
        yield
    finally:
        if undo is not None:
            undo.back()


def unprovable(model: nn.Module, cuts: Cuts, example: Inputs, heads: bool = True) -> dict[str, str]:
    """Group → why a trial of these cuts, made on a copy, has to leave it alone."""
    trial = copy.deepcopy(model)
    coupling = couple(trial, example, heads=heads)
    groups = {group.name: group for group in coupling.groups}
    return cut(trial, coupling, [(groups[g.name], units) for g, units in cuts], example).spared


def smallest_cut(
    model: nn.Module,
    coupling: Coupling,
    cuts_at: Callable[[int], Cuts],
    levels: int,
    cost: Cost,
    limit: float,
    what: str = "cost",
) -> tuple[Cuts, float]:
    """The smallest of growing cuts after which the cost is at most `limit`, by bisection.

    Args:
        model: as it was before, afterwards.
        coupling: of it.
        cuts_at: level in 0 … `levels` → cuts; a higher level cuts more.
        levels: the highest.
        cost: of a network.
        limit: in the cost's unit.
        what: the cost is called in messages.

    Returns:
        The cuts and the cost after them.

    Raises:
        ModelError: even the largest cut costs more.
    """
    known: dict[tuple[tuple[str, int], ...], float] = {}

    def probe(level: int) -> float:
        cuts = cuts_at(level)
        key = tuple((group.name, len(units)) for group, units in cuts)
        if key not in known:
            with cut_for_a_while(model, coupling, cuts):
                known[key] = cost(model)
        return known[key]

    low, high = 0, levels
    with bar("search", levels.bit_length() + 1, "cut") as advance:
        if probe(0) <= limit:
            return cuts_at(0), probe(0)
        if probe(high) > limit:
            raise ModelError(
                f"the largest cut leaves {what}={probe(high):.4g} and {limit:.4g} is asked for; raise "
                "largest, the share of a group that may go, or lower sparsity"
            )
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if probe(middle) <= limit else (middle, high)
            advance()
    return cuts_at(high), probe(high)
