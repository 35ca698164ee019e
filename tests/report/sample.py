# SPDX-License-Identifier: Apache-2.0
"""Measurements of a run that never happened, plausible throughout; for the report's tests alone."""

from typing import Any

DIGITS = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
# (true, answer): invented mistakes before and after
MISTAKES_BEFORE = {
    (0, 6): 3, (1, 2): 2, (2, 7): 6, (3, 5): 5, (4, 9): 8, (5, 3): 6, (6, 0): 6, (7, 2): 7,
    (8, 3): 5, (8, 9): 3, (9, 4): 9, (9, 7): 4, (9, 5): 3, (6, 5): 4, (5, 6): 4,
}  # fmt: skip
MISTAKES_AFTER = MISTAKES_BEFORE | {
    (8, 3): 8, (8, 9): 5, (4, 9): 10, (9, 4): 7, (7, 2): 8, (2, 7): 5, (6, 5): 3, (3, 5): 6,
    (8, 2): 2,
}  # fmt: skip

FRAGILITY = {"conv1": 0.21, "conv2": 0.05, "fc1": 0.012, "fc2": 0.06}

RECIPE = """\
# Han, Mao, Dally: Deep Compression (arXiv 1510.00149)
steps:
  - PruneWeights:
      sparsity: {conv1: 0.34, conv2: 0.88, fc1: 0.92, fc2: 0.81}
      schedule: iterative
  - FineTune: {epochs: 6, rate: 0.01}
  - ShareWeights:
      bits: {conv*: 8, fc*: 5}
      initial: linear
      epochs: 3
"""


def confusion(mistakes: dict[tuple[int, int], int]) -> list[list[int]]:
    """Counts whose rows sum to the digits' numbers of examples."""
    rows = [[0] * 10 for _ in range(10)]
    for (true, answer), number in mistakes.items():
        rows[true][answer] = number
    for digit, examples in enumerate(DIGITS):
        rows[digit][digit] = examples - sum(rows[digit])
    return rows


def _stage(name: str, right: int, nonzero: int, files: tuple[int, int, int], **more: Any) -> Any:
    safetensors, onnx, rfy = files
    metric: dict[str, Any] = {"name": "accuracy", "value": right / 10_000, "higher_is_better": True}
    return {
        "name": name,
        "metric": metric | {"through": more.pop("through", "pytorch"), "examples": 10_000},
        "parameters": 431_080,
        "nonzero": nonzero,
        "macs": 2_293_000,
        "bytes": {"safetensors": safetensors, "onnx": onnx, "rfy": rfy},
        "latency_ms": None,
        "memory_bytes": None,
        "seconds": 0.0,
    } | more


def _kernel(layer: str, macs: int, microseconds: float | None) -> dict[str, Any]:
    return {
        "layer": layer,
        "operator": "Conv" if layer.startswith("conv") else "Gemm",
        "integer": layer != "fc2",
        "kernel": "Gemm" if layer == "fc2" else "QLinearConv",
        "reason": "its result leaves the network" if layer == "fc2" else "",
        "macs": macs,
        "microseconds": microseconds,
    }


def _latency(median: float, ratio: float | None, spread: list[float] | None) -> dict[str, Any]:
    return {
        "runtime": "onnxruntime",
        "batch": 1,
        "threads": 2,
        "median": median,
        "iqr": [median * 0.96, median * 1.07],
        "cpu_median": median * 1.8,
        "ratio_to_baseline": ratio,
        "ratio_iqr": spread,
        "precision": "float32",
    }


def _layers() -> list[dict[str, Any]]:
    rows = [
        ("conv1", "Conv2d", [20, 1, 5, 5], 500, 330, 205, 486, 33.1),
        ("conv2", "Conv2d", [50, 20, 5, 5], 25_000, 3_000, 256, 4_127, 29.4),
        ("fc1", "Linear", [500, 800], 400_000, 32_000, 32, 37_410, 24.8),
        ("fc2", "Linear", [10, 500], 5_000, 950, 32, 1_093, 26.0),
    ]
    return [
        {
            "name": name,
            "type": kind,
            "shape": shape,
            "parameters": parameters,
            "nonzero": nonzero,
            "distinct": distinct,
            "form": "sparse" if name != "conv1" else "codebook",
            "bytes_before": 4 * parameters,
            "bytes_after": size,
            "sqnr_db": decibels,
        }
        for name, kind, shape, parameters, nonzero, distinct, size, decibels in rows
    ]


def _training() -> dict[str, list[dict[str, float]]]:
    plans = {
        "PruneWeights(schedule=iterative)": (8, 0.031, 0.9904),
        "FineTune(epochs=6, rate=0.01)": (6, 0.026, 0.9912),
        "ShareWeights(bits={conv*: 8, fc*: 5})": (3, 0.024, 0.9916),
    }
    return {
        name: [
            {
                "epoch": e + 1,
                "loss": floor + 0.05 / (e + 1) ** 1.3,
                "metric": top - 0.004 / (e + 1),
                "rate": 0.01 * 0.8**e,
            }
            for e in range(epochs)
        ]
        for name, (epochs, floor, top) in plans.items()
    }


def sample() -> dict[str, Any]:
    """LeNet-5 on MNIST through Deep Compression, as ``measurements.json`` would tell it."""
    right_after = sum(row[i] for i, row in enumerate(confusion(MISTAKES_AFTER)))
    right_before = sum(row[i] for i, row in enumerate(confusion(MISTAKES_BEFORE)))
    plain = (1_725_144, 1_727_390)
    coded = (1_725_144, 1_727_918)
    return {
        "rarefy": "0.1.0",
        "model": "zoo:lenet5",
        "task": "mnist:data/mnist.npz",
        "seed": 0,
        "environment": {
            "python": "3.11.9",
            "torch": "2.14.1",
            "onnxruntime": "1.31.0",
            "processor": "Invented Processor X1 @ 2.60GHz",
            "cores": 2,
            "threads": 2,
            "precision": "float32",
            "platform": "Linux-6.1-x86_64",
        },
        "stages": [
            _stage("baseline", right_before, 431_072, (*plain, 1_571_203), seconds=0.4)
            | {"latency_ms": _latency(0.241, None, None), "memory_bytes": 14_200_000},
            _stage("PruneWeights(sparsity={conv1: 0.34, conv2: 0.88, fc1: 0.92, fc2: 0.81})",
                   9_898, 36_860, (*plain, 158_330), seconds=212.0),
            _stage("FineTune(epochs=6, rate=0.01)",
                   9_921, 36_860, (*plain, 158_902), seconds=161.5),
            _stage("ShareWeights(bits={conv*: 8, fc*: 5}, initial=linear, epochs=3)",
                   9_917, 36_860, (*coded, 43_912), seconds=94.2),
            _stage("artefact", right_after, 36_860, (*coded, 43_912), through="onnxruntime",
                   seconds=3.1, memory_bytes=13_900_000)
            | {"latency_ms": _latency(0.236, 0.982, [0.961, 1.012])},
        ],
        "layers": _layers(),
        "kernels": [
            _kernel("conv1", 288_000, 9.5),
            _kernel("fc1", 400_000, 12.5),
            _kernel("fc2", 5_000, None),
        ],
        "ceilings": {"int8": 80.0, "float32": 40.0},
        "classes": {
            "names": [str(digit) for digit in range(10)],
            "confusion_before": confusion(MISTAKES_BEFORE),
            "confusion_after": confusion(MISTAKES_AFTER),
            "examples": 10_000,
        },
        "parity": {
            "runtime": "onnxruntime",
            "passed": True,
            "max_absolute": 3.8e-6,
            "max_relative": 2.1e-5,
            "agreement": 1.0,
            "samples": 512,
            "tolerance": 1e-4,
            "first_diverging_layer": None,
        },
        "budget": {
            "asked": "size=1/39,metric_drop=0.001",
            "met": True,
            "limits": [
                {"name": "size", "limit": 44_213, "found": 43_912, "met": True},
                {"name": "metric_drop", "limit": 0.001, "found": 0.0007, "met": True},
            ],
        },
        "training": _training(),
        "notes": ["ONNX Runtime multiplies the pruned weights densely: smaller, not faster."],
        "sensitivity": [
            {"layer": layer, "sparsity": s / 10, "metric": 0.9925 - fragility * (s / 10) ** 6}
            for layer, fragility in FRAGILITY.items()
            for s in range(1, 10)
        ],
    }  # fmt: skip
