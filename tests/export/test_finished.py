# SPDX-License-Identifier: Apache-2.0
"""The finished copy has the network's values, and the network keeps its own state."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from rarefy.errors import ModelError
from rarefy.export.finished import finished
from rarefy.forms.mask import Mask
from rarefy.forms.shadow import dress, dressed


def masked() -> nn.Sequential:
    """Two layers, the first with a mask on weight and bias."""
    net = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))
    dress(net[0], "weight", Mask(torch.rand(5, 6) > 0.5))
    dress(net[0], "bias", Mask(torch.tensor([True, False, True, False, True])))
    return net.train()


def test_finished_values_are_those_of_the_network_and_wear_no_mask() -> None:
    net = masked()
    copy, x = finished(net), torch.randn(3, 6)
    assert torch.equal(copy(x), net(x))
    assert not list(dressed(copy))
    assert copy[0].bias[1] == 0  # type: ignore[index]


def test_the_network_itself_stays_as_it_was() -> None:
    net = masked()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    finished(net)
    assert net.training
    assert [name for _, _, name in dressed(net)] == ["weight", "bias"]
    assert before.keys() == net.state_dict().keys()
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_tensors_that_need_no_finishing_are_shared() -> None:
    net = masked()
    copy = finished(net)
    assert copy[1].weight.data_ptr() == net[1].weight.data_ptr()  # type: ignore[index, union-attr]


def test_foreign_parametrizations_become_dense() -> None:
    layer = parametrizations.weight_norm(nn.Linear(4, 3))
    copy = finished(nn.Sequential(layer))
    assert not list(dressed(copy))
    assert torch.allclose(copy[0].weight, layer.weight)  # type: ignore[index]


def test_a_network_without_values_is_refused() -> None:
    with torch.device("meta"):
        net = nn.Linear(2, 2)
    with pytest.raises(ModelError, match="meta device"):
        finished(net)


def test_a_network_that_cannot_be_copied_is_refused_with_the_reason() -> None:
    net = nn.Linear(2, 2)
    net.stream = (i for i in range(3))  # type: ignore[assignment]
    with pytest.raises(ModelError, match="generator"):
        finished(net)
