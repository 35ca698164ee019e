# SPDX-License-Identifier: Apache-2.0
"""Puts chains in the places of layers, wherever a network holds these, and makes sure that it uses them."""

from collections.abc import Mapping
from contextlib import ExitStack

from torch import nn

from rarefy.errors import ModelError
from rarefy.factorize.skim import skim
from rarefy.select import Layer
from rarefy.task import Inputs


def replace(model: nn.Module, chains: Mapping[Layer, nn.Module], example: Inputs) -> nn.Module:
    """The network with every layer replaced by its chain.

    Args:
        model: is changed; if it is itself one of the layers, the chain is returned.
        chains: by layer.
        example: on which the network is run to see that nobody misses the layers.

    Raises:
        ModelError: the network reads a layer's own attributes, or calls it through a reference of its own.
    """
    by_module = {layer.module: chain for layer, chain in chains.items()}
    names = {layer.module: layer.name for layer in chains}
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None and child in by_module:
                parent._modules[name] = by_module[child]
    model = by_module.get(model, model)

    def missed(module: nn.Module, _: object) -> None:
        raise ModelError(
            f"factorize: the network calls '{names[module]}' through a reference of its own, so it can't "
            f"be replaced; add '{names[module]}' to exclude"
        )

    with ExitStack() as stack:
        for module in by_module:
            stack.callback(module.register_forward_pre_hook(missed).remove)
        try:
            skim(model, example)
        except AttributeError as error:
            raise ModelError(
                f"factorize: the network reads what its layers had before they were replaced ({error}); "
                f"leave them out with exclude: {', '.join(sorted(names.values())[:8])}"
            ) from error
    return model
