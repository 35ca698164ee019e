# SPDX-License-Identifier: Apache-2.0
"""Which method may follow which, written out; allowed pairs run, refused ones never start."""

import copy
import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from rarefy.compress import apply_step
from rarefy.errors import RecipeError
from rarefy.forms.shadow import bake
from rarefy.measure.quality import evaluate
from rarefy.methods import METHODS
from rarefy.recipe import Recipe, method
from rarefy.step import Context, Step
from rarefy.task import Task

STEPS: dict[str, dict[str, object]] = {
    "prune-weights": {"sparsity": 0.5},
    "prune-connections": {"quality": 0.5, "rounds": 1, "epochs": 1},
    "finetune": {"epochs": 1},
    "reestimate-norms": {},
    "distill": {"epochs": 1},
    "share-weights": {"bits": 5, "epochs": 1},
    "vector-quantization": {"layers": "*"},
    "hash-weights": {"epochs": 1, "start": "projected"},
    "fixed-point": {},
    "static-int8": {},
    "auto-int8": {"loss": 1.0},
    "half-precision": {},
    "factorize": {"rank": 2},
    "prune-channels": {"sparsity": 0.5},
    "thinet": {},
    "lasso-channels": {"samples": 512},
    "merge-neurons": {},
    "similar-neurons": {"sparsity": 0.25},
    "diverse-neurons": {"samples": 512},
    "prune-layers": {"blocks": ["norm"]},
    "layer-drop": {"epochs": 1, "blocks": ["norm"]},
    "sparsify": {"penalty": "group-lasso", "epochs": 1},
    "eagle-eye": {"candidates": 1, "sparsity": 0.3},
    "preserve-features": {"epochs": 1},
    "prune-transformer": {"examples": 64},
    "quantization-aware-training": {"epochs": 1, "examples": 64},
    "mutual-learning": {"epochs": 1},
    "distill-generator": {"epochs": 1},
    "distill-without-data": {"epochs": 1, "examples": 32, "batch": 32, "steps": 3},
    "entropy-penalty": {"epochs": 1},
    "rate-distortion": {"examples": 64},
    "auto-rate-distortion": {"examples": 64, "loss": 1.0},
    "equalise": {},
    "data-free-int8": {},
    "soft-weight-sharing": {"epochs": 1},
    "reconstruct": {"iterations": 2, "examples": 64},
    "smooth-quant": {},
    "split-outliers": {"ratio": 0.1},
    "single-level": {"epochs": 1, "rounds": 2},
    "coreset-filters": {"ratio": 0.5, "weighted": False},
    "tetris": {"sparsity": 0.5, "block": [4, 4], "epochs": 1},
    "bayesian-compression": {"epochs": 1},
    "prune-by-inputs": {"examples": 64},
    "dynamic-int8": {},
    "weight-only": {"bits": 8},
    "gptq": {"examples": 64},
}
# Columns: the second step, in the order of the rows, two letters one above the other. "x": may follow; ".":
# refused.
TABLE = """
                            ppfrdsvhfiahfctlmsdplseppqmdderaedsrsssctbpdwg
                            wctniwqwp88pzhhcnnnldpeftalgwpdrq8wcqolfeyi8oq
prune-weights               xxxxxxx.xxxx.x.....xxxxx.xxxx...xx.xx...x.xxxx
prune-connections           xxxxxxx.xxxx.x.....xxxxx.xxxx...xx.xx...x.xxxx
finetune                    xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx
reestimate-norms            xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx
distill                     xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx
share-weights               ..xxxxx.xxxx.......xx..x..xxx....x.x.......xxx
vector-quantization         ..xxxxx.xxxx.......xx..x..xxx....x.x.......xxx
hash-weights                ..xxxxx.xxxx.......xx..x..xxx....x.x.......xxx
fixed-point                 ...x..........................................
static-int8                 ...x..........................................
auto-int8                   ...x..........................................
half-precision              ..............................................
factorize                   xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx
prune-channels              xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx
thinet                      xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx
lasso-channels              xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx
merge-neurons               xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx
similar-neurons             xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx
diverse-neurons             xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx
prune-layers                xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx
layer-drop                  xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx
sparsify                    xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx
eagle-eye                   xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx
preserve-features           xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx
prune-transformer           xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx
quantization-aware-training ...x..........................................
mutual-learning             xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx
distill-generator           xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx
distill-without-data        xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx
entropy-penalty             ..xxxxx.xxxx.......xx..x..xxx....x.x.......xxx
rate-distortion             ..xxxxx.xxxx.......xx..x..xxx....x.x.......xxx
auto-rate-distortion        ..xxxxx.xxxx.......xx..x..xxx....x.x.......xxx
equalise                    xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx
data-free-int8              ...x..........................................
soft-weight-sharing         ..xxxxx.xxxx.......xx..x..xxx....x.x.......xxx
reconstruct                 ...x..........................................
smooth-quant                xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx
split-outliers              xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx
single-level                ..xxxxx.xxxx.......xx..x..xxx....x.x.......xxx
coreset-filters             xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx
tetris                      xxxxxxx.xxxx.x.....xxxxx.xxxx...xx.xx...x.xxxx
bayesian-compression        ..xxxxx.xxxx.......xx..x..xxx....x.x.......xxx
prune-by-inputs             xxxxxxx.xxxx.x.....xxxxx.xxxx...xx.xx...x.xxxx
dynamic-int8                ...x..........................................
weight-only                 ...x..........................................
gptq                        ...x..........................................
"""
ALLOWED = {
    (line.split()[0], second): mark == "x"
    for line in TABLE.strip().splitlines()[2:]
    for second, mark in zip(STEPS, line.split()[1], strict=True)
}


class TinyNet(nn.Module):
    """One convolution with batch norm and two linear layers, for (B, 1, 8, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.pool = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.MaxPool2d(2)
        self.fc1, self.fc2 = nn.Linear(36, 12), nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.norm(self.conv(x)).relu())
        return self.fc2(self.fc1(x.flatten(1)).relu())


@pytest.fixture(scope="module")
def two_batches(digits_task: Task) -> Task:
    torch.manual_seed(0)
    few = {
        role: list(itertools.islice(digits_task.batches(role), 2))
        for role in ("train", "validation", "calibration")
    }
    return replace(digits_task, **few, test=few["validation"])  # type: ignore[arg-type]


def step(name: str) -> Step:
    return method(name)(**STEPS[name])


def test_the_table_is_whole() -> None:
    assert STEPS.keys() == METHODS.keys()
    assert len(ALLOWED) == len(METHODS) ** 2


@pytest.fixture(scope="module")
def original() -> nn.Module:
    torch.manual_seed(0)
    return TinyNet().eval()


@pytest.fixture(scope="module")
def halfway() -> dict[str, nn.Module]:
    """The network after a first step, by the step's name."""
    return {}


@pytest.mark.parametrize("pair", [pair for pair, allowed in ALLOWED.items() if allowed])
def test_allowed_pairs_run(
    pair: tuple[str, str], original: nn.Module, two_batches: Task, halfway: dict[str, nn.Module]
) -> None:
    recipe = Recipe(tuple(step(name) for name in pair))
    recipe.check(two_batches)
    contexts = [Context(two_batches, original, torch.device("cpu"), seed) for seed in (0, 1)]
    if pair[0] not in halfway:
        first = copy.deepcopy(original)
        halfway[pair[0]] = apply_step(recipe.steps[0], first, contexts[0])[0]
    current, _ = apply_step(recipe.steps[1], copy.deepcopy(halfway[pair[0]]), contexts[1])
    x = two_batches.example
    with torch.no_grad():
        before = current(x)
        after = bake(current)(x)
    assert torch.allclose(before, after, atol=1e-5 * float(before.abs().max()))
    assert 0 <= evaluate(current, two_batches).value <= 1
    if pair[0] in ("prune-weights", "prune-connections") and pair[1] != "hash-weights":
        assert float((current.fc1.weight == 0).float().mean()) > 0.2  # zeros survive what follows


@pytest.mark.parametrize("pair", [pair for pair, allowed in ALLOWED.items() if not allowed])
def test_refused_pairs_never_start(pair: tuple[str, str]) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe(tuple(step(name) for name in pair))
    message = str(caught.value)
    assert message.startswith(f"{pair[1]} can't come after {pair[0]}")
    assert "\n" not in message


def test_what_lies_between_does_not_hide_a_refusal() -> None:
    with pytest.raises(RecipeError, match="hash-weights can't come after prune-weights"):
        Recipe((step("prune-weights"), step("distill"), step("hash-weights")))
