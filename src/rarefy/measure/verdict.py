# SPDX-License-Identifier: Apache-2.0
"""Whether a finished compression keeps within its budget."""

import dataclasses
from typing import Any

from rarefy.budget import Budget


def judge(budget: Budget, stages: list[dict[str, Any]]) -> dict[str, Any]:
    """The budget's verdict on the artefact, as it stands in measurements.json."""
    before, after = stages[0], stages[-1]
    sign = 1 if before["metric"]["higher_is_better"] else -1
    drop = sign * (before["metric"]["value"] - after["metric"]["value"])
    verdicts = budget.verdicts(costs(before, "safetensors"), costs(after, "rfy"), drop)
    asked = {f.name: getattr(budget, f.name) for f in dataclasses.fields(budget)}
    return {
        "asked": ",".join(
            f"{name}={value:g}" for name, value in asked.items() if value is not None
        ),
        "met": all(v.met for v in verdicts),
        "limits": [dataclasses.asdict(v) for v in verdicts],
    }


def costs(stage: dict[str, Any], file: str) -> dict[str, float | None]:
    """What a stage costs, by the names of a budget's limits."""
    latency = stage["latency_ms"]
    return {
        "size": stage["bytes"][file],
        "parameters": stage["parameters"],
        "macs": stage["macs"],
        "latency": latency["median"] if latency else None,
        "memory": stage["memory_bytes"],
        "energy": stage.get("energy_uj"),
    }
