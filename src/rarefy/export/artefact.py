# SPDX-License-Identifier: Apache-2.0
"""The files that a compression ends in: the runtime's model and the coded archive."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from rarefy.export.onnx import write_onnx
from rarefy.store.hashing import hash_file
from rarefy.store.pack import pack
from rarefy.store.replacing import replacing
from rarefy.task import Task

PROGRAM, ARCHIVE, RECIPE, DOCUMENT = "model.onnx", "model.rfy", "recipe.yaml", "measurements.json"
MOBILE = "model.tflite"
VOLATILE = ("latency_ms", "latency_batches", "memory_bytes", "seconds")


def write_program(
    model: nn.Module, task: Task, path: Path, runtime: str = "onnxruntime"
) -> dict[str, int]:
    """Exports a network for a runtime; bytes of the file, of its tensors and of both coded, by file kind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_onnx(model, task.example, path, runtime=runtime)
    scratch = path.with_suffix(".scratch")
    save_file(distinct(model), str(scratch))
    sizes = {"safetensors": scratch.stat().st_size, "onnx": path.stat().st_size}
    sizes["rfy"] = pack(path, scratch)
    scratch.unlink()
    return sizes


def distinct(model: nn.Module) -> dict[str, Any]:
    """The tensors of a network's state, shared ones once, as safetensors wants them."""
    seen: dict[int, str] = {}
    found = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if seen.setdefault(id(tensor), name) == name:
            found[name] = tensor.detach().cpu().contiguous()
    return found


@dataclass(frozen=True)
class Artefact:
    """A folder with the exported network and, once sealed, its coded archive.

    Attributes:
        folder: where the files are.
        coder: entropy coder of the archive.
    """

    folder: Path
    coder: str = "auto"

    @property
    def program(self) -> Path:
        """The ONNX file."""
        return self.folder / PROGRAM

    @property
    def archive(self) -> Path:
        """The .rfy file."""
        return self.folder / ARCHIVE

    @property
    def mobile(self) -> Path:
        """The .tflite file, which is there where LiteRT runs the result."""
        return self.folder / MOBILE

    @classmethod
    def make(cls, program: Path, folder: Path, coder: str, runtime: str) -> "Artefact":
        """Puts an exported network, the last stage's, into `folder`, for LiteRT also as it wants it.

        Raises:
            ModelError: LiteRT can't run it in integers from end to end.
        """
        folder.mkdir(parents=True, exist_ok=True)
        made = cls(folder, coder)
        with replacing(made.program) as partial:
            shutil.copyfile(program, partial)
        if runtime == "litert":
            from rarefy.export.litert import save_litert

            save_litert(made.program, made.mobile)
        return made

    def seal(self, document: dict[str, Any], recipe: str) -> None:
        """Codes the exported network together with recipe, measurements and hashes into the archive.

        Times and memory are left out of the archive, so that the same recipe gives the same bytes. The
        archive's own size is written into the last stage of `document`.
        """
        info = {
            **{key: document[key] for key in ("rarefy", "model", "task", "seed")},
            "recipe": recipe,
            "stages": [
                {k: v for k, v in stage.items() if k not in VOLATILE}
                for stage in document["stages"]
            ],
            "parity": {
                k: document["parity"][k] for k in ("runtime", "passed", "agreement", "samples")
            },
            "onnx_sha256": hash_file(self.program),
        }
        for stage in info["stages"]:
            stage["metric"] = [stage["metric"]["name"], stage["metric"]["value"]]
        size = pack(self.program, self.archive, info=json.loads(json.dumps(info)), coder=self.coder)
        document["stages"][-1]["bytes"]["rfy"] = size

    def copy_to(self, folder: Path, recipe: str, document: dict[str, Any]) -> None:
        """Writes all files of a result into `folder`, each in one move.

        Raises:
            OSError: the disk is full or the folder can't be written; no partial file is left.
        """
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(document, indent=1, allow_nan=False) + "\n"
        writers: dict[str, Callable[[Path], Any]] = {
            PROGRAM: lambda to: shutil.copyfile(self.program, to),
            ARCHIVE: lambda to: shutil.copyfile(self.archive, to),
            RECIPE: lambda to: to.write_text(recipe, encoding="utf-8"),
            DOCUMENT: lambda to: to.write_text(text, encoding="utf-8"),
        }
        if self.mobile.is_file():
            writers[MOBILE] = lambda to: shutil.copyfile(self.mobile, to)
        for name, write in writers.items():
            partial = folder / f"{name}.partial"
            try:
                write(partial)
                os.replace(partial, folder / name)
            finally:
                partial.unlink(missing_ok=True)
