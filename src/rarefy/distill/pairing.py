# SPDX-License-Identifier: Apache-2.0
"""Which module of the student learns from which module of a teacher, by name or found out."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from rarefy.distill.attended import layer_map
from rarefy.distill.lessons import Sees
from rarefy.errors import ModelError, nearest
from rarefy.loops.blocks import blocks_of
from rarefy.loops.features import INPUT, features
from rarefy.loops.modes import evaluating
from rarefy.task import Inputs, call, logits_of

Pair: TypeAlias = tuple[str, str]  # teacher's module, student's module


@dataclass(frozen=True)
class Outline:
    """What a network shows on its example.

    Attributes:
        shapes: of every module's first output, in the order in which they finish.
        embedding: the name of what its last layer reads, or the empty one for its output.
        blocks: paths of its blocks, in order.
    """

    shapes: dict[str, tuple[int, ...]]
    embedding: str
    blocks: list[str]


@torch.no_grad()
def outline(model: nn.Module, example: Inputs) -> Outline:
    """Runs a network once and notes what its modules give.

    Args:
        model: in any mode; is not changed.
        example: on its device.
    """
    names = [name for name, _ in model.named_modules() if name]
    with evaluating(model), features(model, names) as seen:
        answers = logits_of(call(model, example))
    lines = [n for n in seen if isinstance(model.get_submodule(n), nn.Linear)]
    last = lines[-1] if lines and is_same(seen[lines[-1]], answers) else None
    shapes = {n: tuple(x.shape) for n, x in seen.items() if not is_same(x, answers)}
    blocks = [b.name for b in blocks_of(model, example)]
    return Outline(shapes, f"{last}{INPUT}" if last else "", blocks)


def is_same(x: Tensor, y: Tensor) -> bool:
    """Whether two tensors are views of the same entries."""
    return x.shape == y.shape and x.data_ptr() == y.data_ptr()


def named_pairs(pairs: Mapping[str, str], teacher: nn.Module, student: nn.Module) -> list[Pair]:
    """The pairs that the recipe names.

    Raises:
        ModelError: one of the networks has no such module, with the nearest name.
    """
    for whose, network, names in (
        ("teacher", teacher, pairs),
        ("student", student, pairs.values()),
    ):
        known = [name for name, _ in network.named_modules() if name]
        for name in names:
            plain = name.removesuffix(INPUT)
            if plain and plain not in known:
                hint = nearest(plain, known, "named_modules()")
                raise ModelError(f"pairs: the {whose} has no module '{plain}'{hint}")
    return list(pairs.items())


def found_pairs(sees: Sees, teacher: Outline, student: Outline) -> list[Pair]:
    """The pairs that suit a lesson.

    Maps are paired where both networks have the same size, the last one of each size, of the same name if
    there is one; networks without maps pair their blocks, and without blocks their last layer's inputs.

    Raises:
        ModelError: there is nothing to pair.
    """
    vectors = [vector_pair(teacher, student)]
    tokens = block_pairs(teacher, student)
    match sees:
        case "answers" | "attention":
            return []
        case "vectors":
            return vectors
        case "tokens" | "embeddings" if not tokens:
            raise ModelError(
                "hidden-states and embeddings follow the blocks of a transformer, and none was found in "
                "both networks; name modules with `pairs` and take hints"
            )
        case "tokens":
            return tokens
        case "embeddings":
            return [(f"{teacher.blocks[0]}{INPUT}", f"{student.blocks[0]}{INPUT}")]
    maps = map_pairs(teacher, student) or tokens or vectors
    return maps if sees == "maps" else [*(p for p in maps if p not in vectors), *vectors]


def vector_pair(teacher: Outline, student: Outline) -> Pair:
    """What the last layers read; of the same name if the student has that module."""
    plain = teacher.embedding.removesuffix(INPUT)
    inside = [name for name in student.shapes if name.startswith(f"{plain}.")]
    same = bool(plain) and (bool(inside) or student.embedding == teacher.embedding)
    return teacher.embedding, teacher.embedding if same else student.embedding


def block_pairs(teacher: Outline, student: Outline) -> list[Pair]:
    """Each of the student's blocks with one of the teacher's, evenly, the last with the last."""
    theirs, mine = (
        [b for b in side.blocks if len(side.shapes.get(b, ())) == 3] for side in (teacher, student)
    )
    if not theirs or not mine:
        return []
    chosen = layer_map(len(mine), len(theirs))
    return [(theirs[j], b) for b, j in zip(mine, chosen, strict=True)]


def map_pairs(teacher: Outline, student: Outline) -> list[Pair]:
    """The last modules of each size of map that both networks have."""
    found = []
    theirs, mine = by_size(teacher), by_size(student)
    for size, names in theirs.items():
        if size in mine:
            same = [n for n in names if n in mine[size]]
            found.append((same[-1], same[-1]) if same else (names[-1], mine[size][-1]))
    return found


def by_size(side: Outline) -> dict[tuple[int, ...], list[str]]:
    """Names of the modules that give maps larger than a point, by the size of the map."""
    sizes: dict[tuple[int, ...], list[str]] = {}
    for name, shape in side.shapes.items():
        if len(shape) > 3 and max(shape[2:]) > 1:
            sizes.setdefault(shape[2:], []).append(name)
    return sizes
