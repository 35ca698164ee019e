# SPDX-License-Identifier: Apache-2.0
"""The decompositions by name, and which one serves a layer."""

from typing import Literal, TypeAlias

from rarefy.factorize.alternating import SpatialAlternating
from rarefy.factorize.canonical import CP, Separable
from rarefy.factorize.decomposition import Decomposition
from rarefy.factorize.kernel import Shape
from rarefy.factorize.split import SVD, Channel, Spatial
from rarefy.factorize.tensor_train import TensorTrain, TensorTrainMatrix
from rarefy.factorize.tucker import Tucker

Name: TypeAlias = Literal[
    "svd",
    "channel",
    "spatial",
    "spatial-alternating",
    "separable",
    "tucker",
    "cp",
    "tensor-train",
]
DECOMPOSITIONS: dict[str, type[Decomposition]] = {
    "svd": SVD,
    "channel": Channel,
    "spatial": Spatial,
    "spatial-alternating": SpatialAlternating,
    "separable": Separable,
    "tucker": Tucker,
    "cp": CP,
    "tensor-train": TensorTrain,
}
LEAST_AXES = {"svd": 0, "spatial": 2, "spatial-alternating": 2, "separable": 2}


def decomposition_for(name: str, shape: Shape, linear: bool) -> tuple[str, type[Decomposition]]:
    """The decomposition of a layer: the one asked for, or the SVD where its window leaves nothing to it.

    A 1 x 1 convolution, a linear layer and an embedding are matrices, for which all of these are the SVD, but
    for the tensor train of a linear layer. Splitting the window takes two axes longer than 1.

    Args:
        name: one of `DECOMPOSITIONS`.
        shape: of the layer's kernel.
        linear: whether it is a linear layer.
    """
    if name == "tensor-train" and linear:
        return name, TensorTrainMatrix
    if len(shape.wide) < LEAST_AXES.get(name, 1):
        name = "svd"
    return name, DECOMPOSITIONS[name]
