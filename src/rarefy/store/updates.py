# SPDX-License-Identifier: Apache-2.0
"""Updates of a network between machines: only what matters is sent, and what is not sent is kept.

Federated averaging (McMahan et al., 2017, arXiv 1602.05629) with compressed updates: the largest entries
or integers times a step, written by the weight coder, and error feedback (Stich, Cordonnier, Jaggi:
Sparsified SGD with Memory, 2018, arXiv 1809.07599; Lin et al.: Deep Gradient Compression, 2018, arXiv
1712.01887): e <- e + g - C(e + g), so that all that was ever sent is the sum of all updates minus the rest.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rarefy.errors import FileError
from rarefy.store.coding import encode_tensor
from rarefy.store.decoding import decode_tensor
from rarefy.store.fields import Cursor, varint

Tensors = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class UpdateCodec:
    """How an update is made smaller.

    Attributes:
        share: of a tensor's entries that is sent, the largest ones; 1 sends all.
        bits: of the integers that the sent entries become; 0 leaves them float32.
    """

    share: float = 1.0
    bits: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1 or self.bits not in (0, *range(2, 17)):
            raise ValueError(
                f"share={self.share:g}, bits={self.bits}: give a share in (0, 1] and bits 0 or 2 to 16"
            )

    def reduced(self, update: NDArray[Any]) -> NDArray[np.float32]:
        """What of an update is sent, same shape, float32."""
        sent = np.asarray(update, dtype=np.float32)
        if self.share < 1 and sent.size:
            count = max(1, round(self.share * sent.size))
            flat = sent.ravel()
            largest_ones = np.argpartition(np.abs(flat), flat.size - count)[flat.size - count :]
            kept = np.zeros_like(flat)
            kept[largest_ones] = flat[largest_ones]
            sent = kept.reshape(sent.shape)
        largest = float(np.abs(sent).max()) if sent.size else 0.0
        if self.bits and largest:
            step = np.float32(largest / (2 ** (self.bits - 1) - 1))
            # Added zero turns -0.0 into 0.0, which the coder would have to tell apart.
            sent = (np.rint(sent / step) * step + np.float32(0)).astype(np.float32)
        return sent

    def encode(self, update: Tensors) -> bytes:
        """An update as bytes: a checksum, then every tensor, reduced and written in its smallest coding.

        Raises:
            ValueError: NaN or infinity in an update.
        """
        parts = []
        for name in sorted(update):
            if not np.isfinite(update[name]).all():
                raise ValueError(f"the update of '{name}' holds NaN or infinity; leave it out")
            data = encode_tensor(self.reduced(update[name]))
            parts.append(varint(len(data)) + data)
        body = b"".join(parts)
        return _checksum({name: np.shape(update[name]) for name in update}, body) + body


def _checksum(shapes: Mapping[str, tuple[int, ...]], body: bytes) -> bytes:
    """Four bytes that tell damage, and other tensors than those that were sent."""
    layout = "".join(f"{name}\0{tuple(shapes[name])}" for name in sorted(shapes))
    return zlib.crc32(body, zlib.crc32(layout.encode())).to_bytes(4, "little")


def decode_update(data: bytes, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, NDArray[Any]]:
    """The tensors of an update, float32.

    Args:
        data: what `UpdateCodec.encode` gave.
        shapes: of the network's tensors, which both ends know.

    Raises:
        FileError: damaged, or made for other tensors.
    """
    if data[:4] != _checksum(shapes, data[4:]):
        raise FileError("an update is damaged, or was made for tensors of other names or shapes")
    cursor, found = Cursor(data[4:]), {}
    for name in sorted(shapes):
        payload = cursor.take(cursor.varint(cursor.remaining))
        found[name] = decode_tensor(payload, np.dtype(np.float32), shapes[name])
    if cursor.remaining:
        raise FileError(f"an update has {cursor.remaining} bytes more than its tensors take")
    return found


@dataclass
class Sender:
    """One end of a connection: it remembers what it has not sent yet.

    Attributes:
        codec: how updates are made smaller.
        rest: of every tensor what was left out so far.
        sent: bytes so far.
    """

    codec: UpdateCodec
    rest: dict[str, NDArray[Any]] = field(default_factory=dict)
    sent: int = 0

    def send(self, update: Tensors) -> bytes:
        """The bytes of an update and of what was left out before; what is left out now is kept."""
        wanted = {n: np.asarray(u, np.float32) + self.rest.get(n, 0) for n, u in update.items()}
        data = self.codec.encode(wanted)
        received = decode_update(data, {name: u.shape for name, u in wanted.items()})
        self.rest = {name: wanted[name] - received[name] for name in wanted}
        self.sent += len(data)
        return data


def average(
    weights: Tensors, updates: Sequence[Tensors], counts: Sequence[int]
) -> dict[str, NDArray[Any]]:
    """Weights moved by the mean of the clients' updates, each counting as much as its examples.

    Args:
        weights: before.
        updates: one for each client.
        counts: examples of each client.
    """
    total, moved = float(sum(counts)), {}
    for name, weight in weights.items():
        mean = sum(
            u[name].astype(np.float64) * (n / total) for u, n in zip(updates, counts, strict=True)
        )
        moved[name] = (weight.astype(np.float64) + mean).astype(weight.dtype)
    return moved


def dirichlet_parts(
    labels: NDArray[Any], clients: int, concentration: float, seed: int
) -> list[NDArray[np.int64]]:
    """Indices of each client's examples: every class is dealt out by shares from a Dirichlet law.

    Args:
        labels: shape (n,).
        clients: how many.
        concentration: small for clients that see few classes, large for equal shares.
        seed: of the draw.
    """
    rng = np.random.default_rng(seed)
    parts: list[list[int]] = [[] for _ in range(clients)]
    for label in np.unique(labels):
        places = rng.permutation(np.flatnonzero(labels == label))
        shares = rng.dirichlet(np.full(clients, concentration)).cumsum()[:-1]
        ends = np.rint(shares * places.size).astype(np.int64)
        for part, more in zip(parts, np.split(places, ends), strict=True):
            part.extend(more.tolist())
    return [np.array(sorted(part), dtype=np.int64) for part in parts]
