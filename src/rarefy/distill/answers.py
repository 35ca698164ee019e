# SPDX-License-Identifier: Apache-2.0
"""A teacher's answers on disk, found again by what was asked.

An answer is stored under the hash of its input alone, so it serves any order of the data, any other training
and, where the same seed draws the same crops and flips, augmented data as well.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from rarefy.errors import TaskError
from rarefy.loops.modes import named_state
from rarefy.store.checkpoint import load_state, save_state
from rarefy.store.hashing import hash_tensors
from rarefy.task import Inputs, tensors_of

DIGEST = 16  # bytes


def digests(inputs: Inputs) -> list[bytes]:
    """A hash for every example of a batch."""
    parts = [t.detach().cpu().contiguous() for t in tensors_of(inputs)]
    rows = [p.reshape(len(p), -1).numpy() for p in parts]
    found = []
    for number in range(len(rows[0])):
        digest = hashlib.blake2b(digest_size=DIGEST)
        for row in rows:
            digest.update(row[number].tobytes())
        found.append(digest.digest())
    return found


def shortened(logits: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The `count` largest logits, where they stand, and the logit that stands for each of the others.

    The others share what probability is left evenly, so at temperature 1 the kept probabilities stay what
    they were.

    Args:
        logits: (B, classes).
        count: fewer than there are classes.
    """
    kept, places = logits.double().topk(count, dim=1)
    masked = logits.double().scatter(1, places, -torch.inf)
    left = masked.logsumexp(1) - torch.log(torch.tensor(logits.shape[1] - count))
    return kept.float(), places.int(), left.float()


def restored(parts: Sequence[Tensor], classes: int) -> Tensor:
    """Logits (B, classes) from what `shortened` kept."""
    kept, places, left = parts
    whole = left.unsqueeze(1).expand(-1, classes).clone()
    return whole.scatter(1, places.long(), kept)


class Answers:
    """The answers of one teacher.

    Args:
        folder: where the file is, or will be; named after the teacher's weights.
        teacher: whose answers these are.
        largest: keep only so many logits of each answer; None for all.
    """

    def __init__(self, folder: Path, teacher: nn.Module, largest: int | None = None) -> None:
        state = {n: t.detach().float().cpu().numpy() for n, t in named_state(teacher)}
        suffix = f"-{largest}" if largest else ""
        self.path = folder / f"answers-{hash_tensors(state)[:16]}{suffix}.safetensors"
        self.largest, self.classes = largest, 0
        self.known: dict[bytes, tuple[Tensor, ...]] = {}
        self.changed = False
        if self.path.is_file():
            self.load()

    def load(self) -> None:
        """Reads the file."""
        state = load_state(self.path)
        keys = state["keys"].numpy().tobytes()
        rows = zip(*(part.unbind() for part in state["parts"]), strict=True)
        self.classes = state["classes"]
        names = (keys[i : i + DIGEST] for i in range(0, len(keys), DIGEST))
        self.known = dict(zip(names, rows, strict=True))

    def save(self) -> None:
        """Writes the file, if anything is new."""
        if not self.changed:
            return
        keys = torch.frombuffer(bytearray(b"".join(self.known)), dtype=torch.uint8)
        parts = [torch.stack(part) for part in zip(*self.known.values(), strict=True)]
        save_state(self.path, {"keys": keys, "parts": parts, "classes": self.classes})
        self.changed = False

    def fetch(self, inputs: Inputs, ask: Callable[[], Tensor]) -> Tensor:
        """The answers to a batch; the teacher is asked only if one of them is not known.

        Args:
            inputs: of the batch.
            ask: runs the teacher on the batch.

        Raises:
            TaskError: only the largest logits are to be kept, and the answers are no (B, classes).
        """
        names = digests(inputs)
        device = tensors_of(inputs)[0].device
        if not all(name in self.known for name in names):
            self.learn(names, ask().detach().float().cpu())
        columns = zip(*(self.known[name] for name in names), strict=True)
        parts = [torch.stack(column) for column in columns]
        whole = restored(parts, self.classes) if len(parts) == 3 else parts[0]
        return whole.to(device)

    def learn(self, names: list[bytes], answers: Tensor) -> None:
        """Keeps the answers to a batch."""
        self.changed = True
        if self.largest is None:
            self.known.update(zip(names, ((row.clone(),) for row in answers), strict=True))
            return
        if answers.dim() != 2:
            raise TaskError(
                f"only the {self.largest} largest logits of each answer are to be kept, and the teacher "
                f"gives shape {tuple(answers.shape)} in the place of (batch, classes)"
            )
        self.classes = answers.shape[1]
        parts = shortened(answers, min(self.largest, self.classes - 1))
        self.known.update(zip(names, zip(*parts, strict=True), strict=True))
