# SPDX-License-Identifier: Apache-2.0
"""What the writers of LiteRT's operators may ask of the file that they write to."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rarefy.export.litert_file import LiteRtFile, Scaled, Weight


class Target(Protocol):
    """A file on its way, with the values of the network that it holds already.

    Attributes:
        file: the new file.
        constants: of the network, by name.
    """

    file: LiteRtFile
    constants: dict[str, NDArray[Any]]

    def codes(self, node: Any, place: int) -> int:
        """The tensor of codes that a node reads."""

    def weight(self, node: Any, place: int) -> Weight:
        """The weight that a node reads."""

    def bias(self, node: Any, place: int, x: int, scale: NDArray[np.float32], count: int) -> int:
        """The tensor of a bias; zeros where there is none."""

    def rescaled(self, x: int, scaled: Scaled) -> int:
        """The same values on another grid."""

    def output(self, node: Any, scaled: Scaled) -> int:
        """A tensor for what a node gives."""

    def result(self, name: str, shape: Sequence[int], scaled: Scaled) -> int:
        """A tensor of codes, its shape as stored."""

    def sizes(self, name: str) -> list[int]:
        """The shape of a value of the network."""

    def shape(self, x: int) -> list[int]:
        """The shape of a tensor of the new file."""

    def scaled(self, x: int) -> Scaled:
        """What the codes of a tensor mean."""
