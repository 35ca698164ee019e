# SPDX-License-Identifier: Apache-2.0
"""A tensor in a file is the tensor: same values, same gradients, nobody else's memory touched."""

from pathlib import Path

import pytest
import torch
from torch import nn

from rarefy.errors import FileError
from rarefy.forms.mask import set_mask
from rarefy.store.mapped import LEAST, copy_to_files, in_file, movable, move_to_files, tensors_in

LARGE = LEAST // 4


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.bool]
)
def test_values_stay_and_the_file_has_no_name(dtype: torch.dtype, tmp_path: Path) -> None:
    tensor = (torch.randn(3, 5, 7) * 9).to(dtype)
    found = in_file(tensor, tmp_path)
    assert found.dtype == dtype
    assert torch.equal(found, tensor)
    assert found.data_ptr() % 64 == 0  # as torch's own memory, so that kernels choose the same way
    assert not list(tmp_path.iterdir())


def test_what_is_written_stays_in_memory(tmp_path: Path) -> None:
    tensor = torch.zeros(10)
    first, second = in_file(tensor, tmp_path), in_file(tensor, tmp_path)
    first += 1
    assert first.sum() == 10
    assert second.sum() == tensor.sum() == 0


def test_a_folder_without_room_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="has no room for a tensor"):
        in_file(torch.zeros(4), tmp_path / "absent")


def test_only_large_plain_tensors_move() -> None:
    whole = torch.zeros(2, LARGE)
    assert movable(whole)
    assert movable(nn.Parameter(whole))
    assert not movable(whole[0])  # a part of something
    assert not movable(torch.zeros(LARGE - 1))
    assert not movable(torch.zeros(512, 1024).t())
    assert not movable(torch.zeros(LARGE, device="meta"))


def network() -> nn.Sequential:
    """Two large layers that share a weight, one of them masked, and a small one."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(600, 600), nn.BatchNorm1d(600), nn.Linear(600, 600))
    net[2].weight = net[0].weight
    net.append(nn.Linear(600, 700))
    set_mask(net[3], torch.rand(700, 600) > 0.5)
    return net


def test_a_copy_in_files_trains_like_any_copy(tmp_path: Path) -> None:
    original = network()
    before = {name: tensor.clone() for name, tensor in original.state_dict().items()}
    copied = copy_to_files(original, tmp_path)
    assert copied[0].weight is copied[2].weight
    assert not {id(t) for t in tensors_in(copied)} & {id(t) for t in tensors_in(original)}
    x = torch.randn(8, 600)
    assert torch.equal(copied.eval()(x), original.eval()(x))
    optimiser = torch.optim.SGD(copied.parameters(), lr=0.1)
    copied(x).square().mean().backward()
    optimiser.step()
    assert not torch.equal(copied[0].weight, original[0].weight)
    assert all(torch.equal(before[name], t) for name, t in original.state_dict().items())


def test_moving_keeps_the_objects_and_leaves_alone_what_others_hold(tmp_path: Path) -> None:
    net = network()
    weight, bias, places = net[0].weight, net[0].bias, [t.data_ptr() for t in tensors_in(net)]
    output = net.eval()(torch.ones(1, 600))
    stay = net[3].parametrizations.weight.original
    move_to_files(net, tmp_path, {id(stay)})
    assert net[0].weight is weight
    assert torch.equal(net(torch.ones(1, 600)), output)
    moved = [t.data_ptr() not in places for t in tensors_in(net)]
    assert [t is weight for t in tensors_in(net)] == moved
    assert bias.data_ptr() in places
