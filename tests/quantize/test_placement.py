# SPDX-License-Identifier: Apache-2.0
"""Where quantisers stand: small networks whose right answer is known by looking at them."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rarefy.quantize.calibration import look
from rarefy.quantize.placement import Placement, place
from rarefy.zoo.models import load_model


class Net(nn.Module):
    """Convolutions and linear layers put together by a function."""

    def __init__(self, how: Callable[["Net", Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
        self.fc = nn.Linear(4, 3)
        self.relu, self.norm = nn.ReLU(inplace=True), nn.LayerNorm(8)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self, x)


def placed(how: Callable[[Net, Tensor], Tensor], excluded: tuple[str, ...] = ()) -> Placement:
    model = Net(how).eval()
    calls, floating = look(model, torch.randn(2, 4, 8, 8))
    quantised = [n for n in ("a", "b", "c", "fc") if n not in excluded]
    return place(calls, floating, quantised, excluded)


def sites(found: Placement) -> list[str]:
    return [site for group in found.groups for site in group]


def test_the_last_output_stays_float() -> None:
    found = placed(lambda net, x: net.fc(net.a(x).mean((2, 3))))
    assert sites(found) == ["input#0", "a:conv2d#0", ":mean#0"]
    assert found.integer == ("a:conv2d#0", "fc:linear#0")
    assert found.feeds == (("a", "input#0"), ("fc", ":mean#0"))
    assert found.float_ends == ("fc",)


def test_a_last_kernel_that_cannot_give_floats_stays_float() -> None:
    for found in (
        placed(lambda net, x: net.b(net.a(x))),
        placed(lambda net, x: net.b(net.a(x)).relu()),
        placed(lambda net, x: net.a(x) + x),
    ):
        assert sites(found) == ["input#0", "a:conv2d#0"]
        assert found.integer == ("a:conv2d#0",)
        assert found.feeds == (("a", "input#0"),)
        assert found.float_ends == ()


def test_one_quantiser_stands_behind_a_clip() -> None:
    found = placed(lambda net, x: net.b(net.relu(net.a(x))))
    assert sites(found) == ["input#0", "relu:relu#0"]
    assert sites(placed(lambda net, x: net.b(F.relu6(net.a(x))))) == ["input#0", ":relu6#0"]


def test_a_clip_does_not_hide_what_others_read() -> None:
    def both(net: Net, x: Tensor) -> Tensor:
        y = net.a(x)
        return net.c(net.b(y.relu()) + y)

    expected = ["input#0", "a:conv2d#0", ":relu#0", "b:conv2d#0", ":add#0"]
    assert sites(placed(both)) == expected


def test_operators_in_place_make_new_values() -> None:
    def residual(net: Net, x: Tensor) -> Tensor:
        y = net.a(x)
        y += x
        return net.b(net.relu(y))

    found = placed(residual)
    assert sites(found) == ["input#0", "a:conv2d#0", "relu:relu#0"]
    assert ":add#0" in found.integer or ":iadd#0" in found.integer


def test_what_only_moves_values_shares_their_scale() -> None:
    def pooled(net: Net, x: Tensor) -> Tensor:
        y = F.max_pool2d(net.a(x).relu(), 8)
        return net.fc(y.flatten(1))

    found = placed(pooled)
    assert found.groups == (("input#0",), (":relu#0", ":max_pool2d#0", ":flatten#0"))


def test_padding_copies_in_floats_but_shares_the_scale() -> None:
    def padded(net: Net, x: Tensor, value: float = 0.0) -> Tensor:
        y = F.pad(net.a(x).relu(), (1, 1), value=value)
        return net.b(y) + F.avg_pool2d(y, 1)[:, :1]

    assert (":relu#0", ":pad#0") in placed(padded).groups
    ones = placed(lambda net, x: padded(net, x, 1.0))
    assert ones.groups[1:3] == ((":relu#0",), (":pad#0",))


def test_padding_becomes_a_part_of_the_convolutions_that_read_it() -> None:
    def padded(net: Net, x: Tensor, *how: object) -> Tensor:
        return net.b(F.pad(net.a(x).relu(), (0, 1, 0, 1), *how)).square()

    assert sites(placed(padded)) == ["input#0", ":relu#0", "b:conv2d#0"]
    for how in (("constant", 1.0), ("reflect",)):
        found = placed(lambda net, x, how=how: padded(net, x, *how))
        assert sites(found) == ["input#0", ":relu#0", ":pad#0", "b:conv2d#0"]
    # cut off, or read by something else than a convolution, it stays an operator
    found = placed(lambda net, x: net.b(F.pad(net.a(x), (0, -1))).square())
    assert ":pad#0" in sites(found)
    found = placed(lambda net, x: net.b(y := F.pad(net.a(x), (1, 1))).square().sum() + y.sum())
    assert ("a:conv2d#0", ":pad#0") in found.groups


def test_concatenation_shares_a_scale_with_inputs_that_it_alone_reads() -> None:
    def joined(net: Net, x: Tensor) -> Tensor:
        p, q = net.a(x), net.b(x)
        return net.c(torch.cat([p, q], 1)[:, :4] + q).square()

    assert ("a:conv2d#0", ":cat#0", ":getitem#0") in placed(joined).groups
    assert ("b:conv2d#0",) in placed(joined).groups


def test_concatenation_leaves_clipped_and_unclipped_inputs_apart() -> None:
    def joined(net: Net, p: Tensor, q: Tensor) -> Tensor:
        return net.c(torch.cat([p, q], 1)[:, 2:6]).square()

    found = placed(lambda net, x: joined(net, net.a(x).relu(), net.b(x)))
    assert (":relu#0",) in found.groups
    both = placed(lambda net, x: joined(net, net.a(x).relu(), net.b(x).relu()))
    assert (":relu#0", ":relu#1", ":cat#0", ":getitem#0") in both.groups


def test_float_kernels_have_no_quantisers_of_their_own() -> None:
    def normed(net: Net, x: Tensor) -> Tensor:
        return F.softmax(net.norm(x * 3).sigmoid(), 1)

    assert placed(normed).groups == ()
    # a convolution needs one behind it even if a float operator reads it, a matrix product does not
    assert sites(placed(lambda net, x: net.norm(net.a(x)))) == ["input#0", "a:conv2d#0"]
    found = placed(lambda net, x: net.fc(x.mean((2, 3))).softmax(1))
    assert sites(found) == [":mean#0"]
    assert found.float_ends == ("fc",)


def test_constants_and_integers_are_no_activations() -> None:
    def shifted(net: Net, x: Tensor) -> Tensor:
        index = x.mean((1, 2, 3)).argmax() + torch.arange(3).sum()
        return net.a(x + net.fc.weight.sum()) + 2 + 0 * (index + index)

    # only the convolution's own ends; the additions read a parameter, a number, or integers
    assert sites(placed(shifted)) == [":add#1", "a:conv2d#0"]


def test_excluded_modules_stay_float() -> None:
    found = placed(lambda net, x: net.c(net.b(net.a(x))).square(), excluded=("b",))
    assert sites(found) == ["input#0", "a:conv2d#0", "b:conv2d#0", "c:conv2d#0"]
    assert found.integer == ("a:conv2d#0", "c:conv2d#0")
    alone = placed(lambda net, x: net.a(x) + net.a(x), excluded=("",))
    assert not any("add" in site for site in alone.integer)


def test_a_layer_that_runs_twice_is_fed_twice() -> None:
    found = placed(lambda net, x: net.a(net.a(x)).square())
    assert found.feeds == (("a", "input#0"), ("a", "a:conv2d#0"))
    assert found.float_ends == ()
    norms = placed(lambda net, x: net.fc(net.fc(x.mean((2, 3))).repeat(1, 2)[:, :4]))
    assert norms.float_ends == ()


def test_results_that_cannot_be_watched_keep_their_readers_in_float() -> None:
    found = placed(lambda net, x: net.b(torch.cat([net.a(x).topk(2, 1)[0]] * 2, 1)).square())
    assert ":cat#0" not in found.integer
    assert sites(found) == ["input#0", "a:conv2d#0", ":cat#0", "b:conv2d#0"]


def test_parts_of_a_tensor_have_one_quantiser_with_its_scale() -> None:
    found = placed(lambda net, x: net.b(torch.cat(net.a(x).chunk(2, 1), 1)).square())
    assert ":cat#0" in found.integer
    assert sites(found) == ["input#0", "a:conv2d#0", ":chunk#0", ":cat#0", "b:conv2d#0"]
    (group,) = [group for group in found.groups if ":chunk#0" in group]
    assert group == ("a:conv2d#0", ":chunk#0", ":cat#0")


def test_resnet20_runs_in_integers_but_for_padding_and_mean() -> None:
    model = load_model("zoo:resnet20")
    calls, floating = look(model, torch.randn(2, 3, 32, 32))
    quantised = [n for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    # without folding, batch norms stand between the convolutions and their clips
    unfolded = place(calls, floating, quantised)
    assert len(unfolded.integer) == 19 + 9 + 1
    assert sum("batch_norm" in site for group in unfolded.groups for site in group) > 0
