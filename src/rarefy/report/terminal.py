# SPDX-License-Identifier: Apache-2.0
"""Tables on the terminal."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

WIDE = 150  # characters
LONG = 48  # of a stage's name


def show_rows(
    rows: Sequence[Mapping[str, Any]], as_json: bool = False, columns: Sequence[str] = ()
) -> None:
    """Prints rows that share their keys, as JSON or as a table (of some `columns` only, if given)."""
    if as_json:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    names = columns or list(rows[0] if rows else ())
    for name in names:
        numeric = all(isinstance(row[name], (int, float)) for row in rows)
        table.add_column(
            name, justify="right" if numeric else "left", overflow="fold", min_width=len(name)
        )
    for row in rows:
        table.add_row(*(str(row[name]) for name in names))
    terminal = Console()
    # a pipe or a log has no width of its own
    Console(width=None if terminal.is_terminal else WIDE).print(table)


def show_stages(document: Mapping[str, Any]) -> None:
    """Prints metric, size and latency before and after each step."""
    stages = document["stages"]
    show_rows([stage_row(stage, stages[0]) for stage in stages])


def stage_row(stage: Mapping[str, Any], baseline: Mapping[str, Any]) -> dict[str, str]:
    """One line of the table: absolute figures, and factors against the baseline's float32 weights."""
    metric, sizes, latency = stage["metric"], stage["bytes"], stage["latency_ms"]
    size = sizes["rfy"] or sizes["safetensors"]
    full = baseline["bytes"]["safetensors"]
    total = max(stage["parameters"], 1)
    row = {
        "stage": stage["name"] if len(stage["name"]) <= LONG else stage["name"][: LONG - 1] + "…",
        metric["name"]: f"{metric['value']:.4f}",
        "through": metric["through"],
        "zeros": f"{1 - stage['nonzero'] / total:.1%}",
        ".onnx bytes": f"{sizes['onnx']:,}" if sizes["onnx"] else "",
        ".rfy bytes": f"{size:,}",
        "smaller": f"{full / size:.1f}×" if full else "",
        "ms": "",
        "faster": "",
    }
    if latency:
        row["ms"] = f"{latency['median']:.3f}"
        if latency.get("ratio_to_baseline"):
            low, high = sorted(1 / r for r in latency["ratio_iqr"])
            row["faster"] = f"{1 / latency['ratio_to_baseline']:.2f}× ({low:.2f}–{high:.2f})"
    return row


def show_archive(file: Path, as_json: bool) -> None:
    """Prints what a .rfy file holds."""
    from rarefy.store.rfy import read

    with read(file) as archive:
        tensors = archive.describe()
        facts = {"file": str(file), "bytes": file.stat().st_size, "kind": archive.kind}
        if as_json:
            print(json.dumps({**facts, "info": archive.info, "tensors": tensors}, indent=1))
            return
        show_rows(
            [
                {k: "×".join(map(str, v)) if k == "shape" else v for k, v in t.items()}
                for t in tensors
            ]
        )
        print(f"{file}: {facts['bytes']:,} bytes, packed from {facts['kind']}")
        for name in ("model", "task", "seed", "rarefy"):
            if name in archive.info:
                print(f"{name}: {archive.info[name]}")
        if "recipe" in archive.info:
            print(f"recipe:\n{archive.info['recipe']}", end="")
