# SPDX-License-Identifier: Apache-2.0
"""From what the user wrote as MODEL to a network: our zoo, other libraries' zoos, a Python callable."""

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rarefy.errors import ModelError, RarefyError, described, nearest
from rarefy.zoo.tensors import load_weights

if TYPE_CHECKING:
    from torch import nn

KINDS = "zoo:NAME, torchvision:NAME, timm:NAME, hf:DIR-or-id, path/file.py:callable, file.onnx"
WEIGHTS = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class Entry:
    """A network of the zoo.

    Attributes:
        where: ``module:class``.
        arguments: of its constructor.
        training: fields of `Training` that serve it well from scratch.
    """

    where: str
    arguments: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)


PLAIN = {"epochs": 12, "rate": 0.02, "warmup": 0.1, "weight_decay": 5e-4}
RESIDUAL = {"epochs": 14, "rate": 0.2, "warmup": 0.15, "weight_decay": 5e-4, "resolution": 0.5}
ZOO: dict[str, Entry] = {
    "digits-net": Entry(
        "rarefy.zoo.lenet:DigitsNet", training={**PLAIN, "epochs": 40, "rate": 0.05}
    ),
    "lenet300": Entry("rarefy.zoo.lenet:LeNet300", training={**PLAIN, "epochs": 20, "rate": 0.05}),
    "lenet5": Entry("rarefy.zoo.lenet:LeNet5", training=PLAIN),
    "small-vgg": Entry("rarefy.zoo.vgg:SmallVGG", training={**PLAIN, "rate": 0.1}),
    "small-vgg-gray": Entry("rarefy.zoo.vgg:SmallVGG", {"channels": 1}, {**PLAIN, "rate": 0.1}),
    **{
        f"resnet{depth}": Entry("rarefy.zoo.resnet:CifarResNet", {"depth": depth}, RESIDUAL)
        for depth in (8, 20, 32, 44, 56, 110)
    },
}


def split_spec(spec: str) -> tuple[str, str]:
    """The kind and the rest of a MODEL: ``("zoo", "lenet5@mnist")``, ``("python", "a.py:model")``, …

    Raises:
        ModelError: no known kind.
    """
    kind, _, rest = spec.partition(":")
    if kind in ("zoo", "torchvision", "timm", "hf") and rest:
        return kind, rest
    if ".py:" in spec:
        return "python", spec
    path = Path(spec)
    if path.suffix in (".rfy", ".onnx"):
        return "file", spec
    if path.is_dir():
        return "directory", spec
    raise ModelError(f"'{spec}' names no model; write {KINDS}, file.rfy, or a result's folder")


def zoo_entry(name: str) -> Entry:
    """The zoo's entry for ``lenet5`` or ``lenet5@mnist``; checked without importing torch.

    Raises:
        ModelError: no such network, or no weights for that task.
    """
    base, _, task = name.partition("@")
    if base not in ZOO:
        raise ModelError(f"the zoo has no network '{base}'{nearest(base, ZOO)}")
    if task and not (WEIGHTS / f"{name}.rfy").is_file():
        trained = sorted(path.stem for path in WEIGHTS.glob("*.rfy"))
        raise ModelError(f"no trained weights '{name}' ship with rarefy{nearest(name, trained)}")
    return ZOO[base]


def load_model(spec: str, weights: Path | None = None) -> "nn.Module":
    """Builds the network that `spec` names, in eval mode on the CPU, with `weights` if given.

    Args:
        spec: ``zoo:lenet5``, ``zoo:lenet5@mnist`` (trained), ``torchvision:resnet18`` (random weights, or
            those of `weights`), ``timm:mobilenetv3_small_050``, ``hf:folder``, ``path/file.py:callable``,
            ``file.onnx``.
        weights: a .safetensors or .rfy file, or a PyTorch file that holds tensors only.

    Raises:
        ModelError: unknown name, a callable that returns no module, weights of another architecture.
    """
    kind, rest = split_spec(spec)
    builders: dict[str, Callable[[str], Any]] = {
        "zoo": from_zoo,
        "torchvision": from_torchvision,
        "timm": from_timm,
        "hf": from_hub,
        "python": from_python,
        "file": from_onnx,
    }
    if kind not in builders:
        raise ModelError(f"'{spec}' is a result's folder; name the .onnx file in it, or {KINDS}")
    model = builders[kind](rest)
    from torch import nn

    if not isinstance(model, nn.Module):
        raise ModelError(
            f"'{spec}' returned a value of type {type(model).__name__}; return a torch.nn.Module"
        )
    if weights is not None:
        load_weights(model, weights)
    return model.eval()


def from_zoo(name: str) -> "nn.Module":
    """A network of ours; with its trained weights where ``@task`` follows the name."""
    entry = zoo_entry(name)
    module, _, attribute = entry.where.partition(":")
    model: nn.Module = getattr(importlib.import_module(module), attribute)(**entry.arguments)
    if "@" in name:
        load_weights(model, WEIGHTS / f"{name}.rfy")
    return model


def from_torchvision(name: str) -> "nn.Module":
    """A model of torchvision, without weights."""
    try:
        from torchvision import models
    except ImportError:
        raise ModelError(
            "torchvision models need torchvision: pip install 'rarefy[vision]'"
        ) from None
    if name not in models.list_models():
        raise ModelError(
            f"torchvision has no model '{name}'{nearest(name, models.list_models())[:200]}"
        )
    extra = (
        {"weights_backbone": None}
        if "rcnn" in name or "ssd" in name or "retina" in name or "fcos" in name
        else {}
    )
    return models.get_model(name, weights=None, **extra)


def from_timm(name: str) -> "nn.Module":
    """A model of timm, without weights."""
    try:
        import timm
    except ImportError:
        raise ModelError("timm models need timm: pip install 'rarefy[vision]'") from None
    if name not in timm.list_models():
        raise ModelError(f"timm has no model '{name}'{nearest(name, timm.list_models())[:200]}")
    return timm.create_model(name, pretrained=False)


def from_onnx(name: str) -> "nn.Module":
    """The network of an ONNX file, or of a .rfy file that holds one."""
    from rarefy.zoo.onnx_graph import build
    from rarefy.zoo.onnx_source import read_source

    return build(read_source(Path(name)))


def from_hub(name: str) -> "nn.Module":
    """A transformers model from a folder or the hub, with its weights (safetensors only)."""
    try:
        from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification
    except ImportError:
        raise ModelError("hf models need transformers: pip install 'rarefy[nlp]'") from None
    try:
        config = AutoConfig.from_pretrained(name)
        classifies = any("SequenceClassification" in a for a in config.architectures or ())
        kind = AutoModelForSequenceClassification if classifies else AutoModel
        return kind.from_pretrained(name, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise ModelError(f"'hf:{name}' can't be loaded: {str(error).splitlines()[0]}") from None


def import_callable(spec: str) -> Callable[[], Any]:
    """The callable of ``path/file.py:name``; importing the file runs it, as the user asked.

    Raises:
        ModelError: no such file or name, or the name is no callable without arguments.
    """
    file, _, name = spec.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise ModelError(f"there is no file '{file}' (in '{spec}')")
    loader = importlib.util.spec_from_file_location(path.stem, path)
    if loader is None or loader.loader is None:
        raise ModelError(f"'{file}' can't be imported")
    module = importlib.util.module_from_spec(loader)
    sys.modules.setdefault(path.stem, module)
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        loader.loader.exec_module(module)
    except RarefyError:
        raise
    except (Exception, SystemExit) as error:
        raise ModelError(f"'{file}' can't be imported: {described(error, file)}") from error
    finally:
        sys.path.remove(str(path.parent.resolve()))
    found = getattr(module, name, None)
    if not callable(found):
        own = [
            n
            for n, v in vars(module).items()
            if callable(v) and getattr(v, "__module__", None) == module.__name__
        ]
        raise ModelError(f"'{file}' has no callable '{name}'{nearest(name, own)}")
    required = [
        p.name
        for p in inspect.signature(found).parameters.values()
        if p.default is p.empty
        and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    if required:
        raise ModelError(
            f"'{spec}' asks for arguments ({', '.join(required)}); rarefy calls it without any"
        )
    return found


def from_python(spec: str) -> Any:
    """Whatever the user's callable returns.

    Raises:
        ModelError: it raised; the text says what, and in which line of the user's file.
    """
    build = import_callable(spec)
    try:
        return build()
    except RarefyError:
        raise
    except (Exception, SystemExit) as error:
        file = spec.rpartition(":")[0]
        raise ModelError(f"'{spec}' failed with {described(error, file)}") from error
