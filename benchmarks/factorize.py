# SPDX-License-Identifier: Apache-2.0
"""All decompositions at equal multiply-accumulates, and what factorising a large network costs.

    python benchmarks/factorize.py --data DIR [--only speed lenet5 resnet20 vgg efficientnet]
                                   [--decompositions svd ...] [--macs 0.5]
                                   [--train-images N] [--test-images N]

DIR holds ``mnist.npz``, the JPEG arrays of CIFAR-10 and, for EfficientNet-Lite0, the zips of images that
``examples/efficientnet_lite0.py`` names. Speed needs no data. The VGG, of half the width of the zoo's, is
trained here for ten epochs and kept in ``out/factorize``. Ranks are spread greedily by measured errors,
once for factors that fit the weights and once for factors that fit the outputs (for EfficientNet-Lite0 once
for both); the repaired columns use the latter's ranks. The two epochs are of fine-tuning on labels, for
EfficientNet-Lite0 of distillation without any. Errors are squared errors of the logits on test images as a
share of the logits' spread about their mean; times are of a batch of one in ONNX Runtime, interleaved with
the original, as a ratio with quartiles.
"""

import argparse
import copy
import dataclasses
import itertools
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model as load_into
from safetensors.torch import save_model
from torch import Tensor, nn
from torch.utils.data import DataLoader, SequentialSampler, Subset

from rarefy.compress import apply_step
from rarefy.distill.distill import Distill
from rarefy.distill.finetune import Finetune
from rarefy.export.onnx import export_onnx
from rarefy.export.onnxruntime import OnnxRuntime
from rarefy.factorize.decompositions import DECOMPOSITIONS, decomposition_for
from rarefy.factorize.factorize import Factorize
from rarefy.factorize.kernel import kernel_of, shape_of
from rarefy.measure.counts import macs
from rarefy.measure.latency import latency
from rarefy.measure.quality import evaluate
from rarefy.select import select
from rarefy.step import Context
from rarefy.task import Task, split
from rarefy.zoo.models import load_model
from rarefy.zoo.tasks import load_task
from rarefy.zoo.vgg import SmallVGG

HOME = Path(__file__).parents[1]
EXAMPLE, OUT = HOME / "examples" / "efficientnet_lite0.py", HOME / "out" / "factorize"
CASES = {
    "lenet5": ("zoo:lenet5@mnist", "mnist:{data}/mnist.npz", tuple(DECOMPOSITIONS), 128),
    "resnet20": ("zoo:resnet20@cifar10", "cifar10:{data}", tuple(DECOMPOSITIONS), 128),
    "vgg": ("", "cifar10:{data}", tuple(DECOMPOSITIONS), 128),
    "efficientnet": (f"{EXAMPLE}:model", f"{EXAMPLE}:task", ("svd",), 16),
}


def seconds(function: Callable[[], Any]) -> float:
    """Processor time of a call."""
    started = time.process_time()
    function()
    return time.process_time() - started


def speed() -> None:
    """The decomposition calls of ResNet-50 alone, the whole step, and a Gram matrix against an SVD."""
    import torchvision

    wide = torch.randn(1, 512, 4608)
    gram = min(seconds(lambda: DECOMPOSITIONS["svd"](wide).weights((128,))) for _ in range(5))
    plain = min(seconds(lambda: torch.linalg.svd(wide[0], full_matrices=False)) for _ in range(2))
    print(f"512 x 4608 to rank 128: Gram matrix {gram:.3f} s, SVD {plain:.3f} s\n")
    torch.manual_seed(0)
    network = torchvision.models.resnet50(weights=None).eval()
    task = Task("random", torch.randn(1, 3, 224, 224), labelled=False)
    print("| ResNet-50, every convolution | decomposition calls | the step | ratio |")
    print("| --- | --- | --- | --- |")
    for name in ("svd", "channel", "spatial"):
        alone, step = Factorize(decomposition=name, layers="type:Conv2d"), []  # type: ignore[arg-type]
        calls = []
        for _ in range(4):
            model = copy.deepcopy(network)
            kernels = [kernel_of(x) for x in select(model, "type:Conv2d")]
            calls.append(seconds(lambda: [decomposed(name, kernel) for kernel in kernels]))
            context = Context(task, network, torch.device("cpu"))
            step.append(seconds(lambda: alone.apply(model, context)))
        a, b = min(calls), min(step)
        print(f"| {name} | {a:.2f} s | {b:.2f} s | {b / a:.2f} |", flush=True)


def decomposed(name: str, kernel: Tensor) -> list[Tensor]:
    """The weights of a kernel's factors at a quarter of the full rank."""
    made = decomposition_for(name, shape_of(kernel), linear=False)[1](kernel)
    return made.weights(made.at(0.25))


@torch.no_grad()
def logits(model: nn.Module, task: Task) -> Tensor:
    """What a network answers to at most a thousand test images."""
    batches = itertools.islice(task.batches("test"), 8)
    return torch.cat([model(split(batch, task.labelled)[0][:250]) for batch in batches]).double()


def off(found: Tensor, wanted: Tensor) -> float:
    """Squared error as a share of the spread."""
    return float((found - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum())


def applied(step: Any, model: nn.Module, teacher: nn.Module, task: Task) -> tuple[Any, Context]:
    """A step's result on a copy."""
    context = Context(task, teacher, torch.device("cpu"), 0, {})
    return apply_step(step, copy.deepcopy(model), context)[0], context


def row(model: nn.Module, task: Task, name: str, given: argparse.Namespace, case: str) -> str:
    """One decomposition at the budget, in Markdown."""
    *_, examples = CASES[case]
    wanted = logits(model, task)
    shared: dict[str, Any] = {"decomposition": name, "examples": examples}
    budget: dict[str, Any] = {"allocation": "greedy", "budget": f"macs={given.macs:g}"}
    aware, context = applied(Factorize(**shared, **budget, fit="outputs"), model, model, task)
    rows = context.record["layers"]
    ranks = {x["name"]: tuple(x["ranks"]) for x in rows}
    own = {"ranks": ranks} if examples < 128 else budget
    plain, _ = applied(Factorize(**shared, **own), model, model, task)
    step = Factorize(**shared, fit="outputs", repair="least-squares", ranks=ranks)
    mended, _ = applied(step, model, model, task)
    both = [plain, aware, mended, trained(mended, model, task, case)]
    metrics = [f"{evaluate(m, task).value:.2%}" for m in both]
    errors = " → ".join(f"{off(logits(m, task), wanted):.3f}" for m in both[:3])
    one = task.example[:1]  # type: ignore[index]
    runs = {str(i): OnnxRuntime(export_onnx(m, one)) for i, m in enumerate((model, both[-1]))}
    ratio = latency(runs, one, budget=4.0)["1"]
    share = macs(mended, one) / macs(model, one)
    low, high = ratio.ratio_iqr
    return (
        f"| {name} | {share:.3f} | {errors} | {' | '.join(metrics)} "
        f"| {ratio.ratio:.2f} ({low:.2f}–{high:.2f}) |"
    )


def trained(model: nn.Module, teacher: nn.Module, task: Task, case: str) -> nn.Module:
    """The network after two epochs, with labels where there are enough of them."""
    if case != "efficientnet":
        return applied(Finetune(epochs=2, rate=0.01), model, teacher, task)[0]
    return applied(
        Distill(epochs=2, rate=0.005), model, teacher, load_task(f"{EXAMPLE}:unlabelled")
    )[0]


def vgg(task: Task) -> nn.Module:
    """A narrow VGG with batch norm, trained from scratch once."""
    model, path = SmallVGG(width=32), OUT / "small-vgg-32.safetensors"
    if path.is_file():
        load_into(model, path)
        return model.eval()
    torch.manual_seed(0)
    model = SmallVGG(width=32)
    step = Finetune(epochs=10, rate=0.1, warmup=0.1, weight_decay=5e-4, resolution=0.5)
    apply_step(step, model, Context(task, model, torch.device("cpu"), 0, {}))
    OUT.mkdir(parents=True, exist_ok=True)
    save_model(model, str(path))
    return model.eval()


def fewer(loader: Any, images: int | None) -> Any:
    """A loader of the first images only, if a number is given."""
    if not images or not isinstance(loader, DataLoader):
        return loader
    few = Subset(loader.dataset, range(min(images, len(loader.dataset))))  # type: ignore[arg-type]
    shuffled = not isinstance(loader.sampler, SequentialSampler)
    size = min(loader.batch_size or 1, 50) if images <= 1000 else loader.batch_size
    return DataLoader(few, size, shuffle=shuffled, collate_fn=loader.collate_fn)


def table(case: str, given: argparse.Namespace) -> None:
    """All decompositions on one network."""
    spec, source, names, _ = CASES[case]
    task = load_task(source.format(data=given.data))
    model = load_model(spec) if spec else vgg(task)
    train, test = fewer(task.train, given.train_images), fewer(task.test, given.test_images)
    task = dataclasses.replace(task, train=train, test=test, validation=None)
    print(f"\n{case}: {evaluate(model, task).value:.2%} as it is\n")
    print("| decomposition | MACs | output error: plain → activation-aware → least squares "
          "| plain | activation-aware | least squares | 2 epochs | time |")  # fmt: skip
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in given.decompositions or names:
        started = time.perf_counter()
        print(row(model, task, name, given, case), flush=True)
        print(f"{case} {name}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=os.environ.get("RAREFY_DATA"))
    parser.add_argument("--only", nargs="*", choices=["speed", *CASES], default=["speed", *CASES])
    parser.add_argument("--decompositions", nargs="*", choices=list(DECOMPOSITIONS))
    parser.add_argument("--macs", type=float, default=0.5, help="share to keep")
    parser.add_argument("--train-images", type=int, default=None)
    parser.add_argument("--test-images", type=int, default=None)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if "speed" in given.only:
        speed()
    cases = [case for case in given.only if case != "speed"]
    if cases and given.data is None:
        print("no data: give --data DIR or set RAREFY_DATA")
        return
    os.environ["RAREFY_DATA"] = str(given.data)
    for case in cases:
        table(case, given)


if __name__ == "__main__":
    main()
