# SPDX-License-Identifier: Apache-2.0
"""How long it takes to find, prove and cut half of a network's coupled channels, beside Torch-Pruning.

    python benchmarks/cutting.py [--memory] [NAME …]

CPU seconds of one core, the two in turns, each run in a process of its own that has loaded the libraries;
medians of three. What the imports left behind is kept from the garbage collector, which would walk through it
in the middle of one run or another. Torch-Pruning (``pip install torch-pruning``) gets the heads of
attention as its examples tell it to, keeps the classifier, and is stopped after 60 seconds; it does not
compare the cut network with anything, rarefy's figure contains its proof. ``--memory`` measures rarefy's peak
memory instead, the network itself included, beside that of two networks and a forward pass.
"""

import argparse
import gc
import math
import multiprocessing
import resource
import statistics
import time
from importlib.util import find_spec
from typing import Any

NAMES = ("resnet50", "densenet121", "vit_b_16", "mobilenet_v3_large", "efficientnet_b0", "swin_t")
ROUNDS, SECONDS = 3, 60


def ours(model: Any, example: Any) -> None:
    """Looks, analyses, cuts and proves."""
    import torch

    from rarefy.graph.coupling import couple
    from rarefy.graph.proof import cut

    coupling = couple(model, example)
    counts = coupling.even({g.name: g.size // 2 for g in coupling.groups})
    chosen = [(coupling.group(k), torch.arange(n)) for k, n in counts.items()]
    cut(model, coupling, chosen, example)


def theirs(model: Any, example: Any) -> None:
    """Builds the dependency graph and prunes once."""
    import torch_pruning as tp
    from torch import nn

    attention = [m for m in model.modules() if isinstance(m, nn.MultiheadAttention)]
    last = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == 1000]
    pruner = tp.pruner.BasePruner(
        model,
        example,
        importance=tp.importance.RandomImportance(),
        pruning_ratio=0.5,
        ignored_layers=last,
        num_heads={m: m.num_heads for m in attention},
    )
    pruner.step()


def timed(tool: str, name: str, pipe: Any) -> None:
    """Sends the CPU seconds of one run, and the share of the parameters that is left."""
    import torch
    import torchvision

    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 5))
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None).eval()
    example = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        model(example)
    before = sum(p.numel() for p in model.parameters())
    started = time.process_time()
    {"rarefy": ours, "torch-pruning": theirs}[tool](model, example)
    took = time.process_time() - started
    pipe.send((took, sum(p.numel() for p in model.parameters()) / before))


def weighed(name: str, pipe: Any) -> None:
    """Sends the megabytes of a network, and of a forward pass and of cutting above it."""
    import torch
    import torchvision

    from rarefy.measure.memory import peak_memory

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None).eval()
    example = torch.randn(1, 3, 224, 224)
    size = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    forward = peak_memory(model, example)
    cutting = peak_memory(lambda x: ours(model, x), example)
    pipe.send(tuple(number / 1e6 for number in (size, forward, cutting)))


def run(work: Any, *arguments: str) -> Any:
    """What work sends from a process of its own; None if it failed or took too long."""
    forks = multiprocessing.get_context("fork")
    here, there = forks.Pipe(duplex=False)
    process = forks.Process(target=work, args=(*arguments, there))
    process.start()
    there.close()
    try:
        found = here.recv()
    except EOFError:
        found = None
    process.join()
    return found


def memory(names: list[str]) -> None:
    """Prints one row a network."""
    print("| network | its size | forward pass | peak of cutting | of two networks and a pass |")
    print("| --- |" + " ---: |" * 4)
    for name in names:
        size, forward, cutting = run(weighed, name)
        share = (size + cutting) / (2 * size + forward)
        print(
            f"| {name} | {size:.0f} MB | {forward:.0f} MB | {size + cutting:.0f} MB | {share:.2f} |",
            flush=True,
        )


def told(found: list[tuple[float, float] | None]) -> str:
    """Median seconds and what is left."""
    good = [f for f in found if f is not None]
    if not good:
        return f"not done in {SECONDS} s"
    return f"{statistics.median(t for t, _ in good):.2f} s, {good[0][1]:.2f} left"


def main() -> None:
    """Prints one row a network and the geometric mean of the ratios."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--memory", action="store_true", help="peak memory instead of time")
    given = parser.parse_args()
    names = list(given.names)
    import torchvision  # noqa: F401

    import rarefy.graph.proof  # noqa: F401  # what a run imports is no part of its time

    if given.memory:
        memory(names)
        return
    tools = ["rarefy", *(["torch-pruning"] if find_spec("torch_pruning") else [])]
    if len(tools) > 1:
        import torch_pruning  # noqa: F401
    gc.collect()
    gc.freeze()
    print("| network | " + " | ".join(tools) + " |\n| --- |" + " --- |" * len(tools))
    ratios = []
    for name in names:
        found: dict[str, list[tuple[float, float] | None]] = {tool: [] for tool in tools}
        for _ in range(ROUNDS):
            for tool in tools:
                if None not in found[tool]:
                    found[tool].append(run(timed, tool, name))
        print(f"| {name} | " + " | ".join(told(each) for each in found.values()) + " |", flush=True)
        done = [[t for t, _ in filter(None, each)] or [SECONDS] for each in found.values()]
        if len(done) == 2:
            ratios.append(statistics.median(done[0]) / statistics.median(done[1]))
    if ratios:
        mean = math.exp(statistics.mean(map(math.log, ratios)))
        print(f"\ngeometric mean of the time against torch-pruning's: {mean:.2f}")
        print(f"(a run that was stopped counts as {SECONDS} s)")


if __name__ == "__main__":
    main()
