"""Classifiers by name: whatever maps images [B, C, H, W] in [-1, 1] to logits [B, classes]."""

from collections.abc import Callable, Sequence
from functools import partial
from inspect import Parameter, signature
from typing import Any

from torch import nn

from halfstep.config import JsonObject, NetConfig
from halfstep.errors import ConfigError, unknown
from halfstep.models import import_function, plain_config, user_function
from halfstep.models.adapters import refuse_unknown
from halfstep.models.classifiers.cnns import Pooled, ResidualCNN, ToyStudent, ToyTeacher
from halfstep.models.classifiers.efficientnet import Lite0Classifier
from halfstep.models.classifiers.feature_cnn import Classifier
from halfstep.models.classifiers.preprocessing import Prepared, Preprocessing
from halfstep.models.limits import build_within_limits
from halfstep.models.rebuild import refuse_changed, refuse_wrapped


def _deeper(channels: int = 3, num_classes: int = 5) -> Pooled:
    return Pooled(channels, num_classes, widths=(64, 128, 256))


def _shallow(channels: int = 3, num_classes: int = 5) -> Pooled:
    return Pooled(channels, num_classes)


CLASSIFIERS: dict[str, Callable[..., nn.Module]] = {
    "features": Classifier,
    "cnn": ResidualCNN,
    "shallow": _shallow,
    "deeper": _deeper,
    "toy-teacher": ToyTeacher,
    "toy-student": ToyStudent,
    "efficientnet-lite0": Lite0Classifier,
}
"""Names of classifiers.  Wherever one is written, `package.module:function` may be, too.

features            the one whose features distances look through: no normalisation (see `Classifier`)
cnn                 a small residual network, good at 28 x 28
shallow, deeper     the report's students
toy-teacher, -student   the report's toy
efficientnet-lite0  with ImageNet's weights, if asked, from the package that has them
"""


def build_classifier(
    name: str, config: NetConfig, *, preprocessing: Preprocessing | None = None
) -> nn.Module:
    """The named classifier, which remembers how it was made: `classifier_recipe(net)` says it.

    name           one of `CLASSIFIERS`, or `package.module:function`: a function of the user's that is
                   called with the config's entries and returns a module
    config         its arguments; what JSON cannot hold is refused, because it could not be saved
    preprocessing  what is done to images in [-1, 1] first
    """
    kept = plain_config(name, config)
    if ":" in name:
        net = user_function(name)(**config)
    else:
        refuse_unknown(name, config, _parameters(name))
        net = build_within_limits(name, CLASSIFIERS[name], config)
    if not isinstance(net, nn.Module):
        raise ConfigError(f"{name} returned {type(net).__name__}: return a torch.nn.Module")
    before = preprocessing or Preprocessing()
    if before != Preprocessing():
        net = Prepared(net, before)
    net.recipe = name, kept, before  # type: ignore[assignment]
    return net


def classifier_recipe(net: nn.Module) -> tuple[str, JsonObject, Preprocessing]:
    """The name, config and preprocessing that `build_classifier` made this network from."""
    found = getattr(net, "recipe", None)
    if found is None and isinstance(net, Classifier):
        return "features", dict(net.config), Preprocessing()
    if found is None or len(found) != 3:
        raise ConfigError(
            f"this {type(net).__name__} was not made by build_classifier, so nobody could rebuild it from "
            "a file: build it with build_classifier('package.module:function', config)"
        )
    name, config, preprocessing = found
    return name, dict(config), preprocessing


def refuse_changed_classifier(net: nn.Module) -> None:
    """`ConfigError` for a classifier that `build_classifier` would no longer make from its recipe."""
    refuse_wrapped(net)
    name, config, before = classifier_recipe(net)
    if getattr(net, "quantised", None):  # whose tensors are torchao's
        return
    fresh = partial(build_classifier, name, config, preprocessing=before)
    refuse_changed(net, fresh, name, draws=":" in name)


def class_names(net: nn.Module) -> tuple[str, ...]:
    """The names of its classes, in their order; () where nobody said them."""
    return tuple(getattr(net, "class_names", ()))


def label_smoothing(net: nn.Module) -> float:
    """The share of its labels that was spread over all classes when it was trained; 0 if nobody said so."""
    return float(getattr(net, "label_smoothing", 0.0))


def refuse_other_classes(
    mine: Sequence[str], theirs: Sequence[str], whose: str, others: str
) -> None:
    """`ConfigError` where both name their classes, and not the same in the same order.

    Numbers are no names: data without names has them.  But a class that is named after another number is
    another: folders 1 to 10, or 0, 2 and 3, are not the labels 0 to 9, or 0 to 2.
    """
    named = [
        names for names in (mine, theirs) if list(names) != [str(k) for k in range(len(names))]
    ]
    if len(named) == 1:
        for k, name in enumerate(named[0]):
            if name.isascii() and name.isdecimal() and int(name) != k:
                raise ConfigError(
                    f"one of {whose} and {others} numbers its classes from 0 on, and the other calls class "
                    f"{k} '{name}', which is not the same: give data of the same classes, or both with names"
                )
    elif named and tuple(mine) != tuple(theirs):
        raise ConfigError(
            f"{whose} has the classes {_listed(mine)} and {others} {_listed(theirs)}: class 0 of the one "
            "would be taken for class 0 of the other; give data of the same classes"
        )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")


def infer_classifier_config(name: str, shape: Sequence[int], num_classes: int) -> JsonObject:
    """The part of the named classifier's config that the data decides.

    shape    of one image, (C, H, W)
    classes  how many there are

    A function of the user's is given those of channels, classes and size (a number, or [H, W]) that it
    has as arguments.
    """
    if len(shape) != 3:
        raise ConfigError(
            f"a classifier is for images, shape [C, H, W], and a sample is {list(shape)}"
        )
    channels, height, width = shape
    size: int | list[int] = height if height == width else [height, width]
    if name in ("features", "toy-teacher"):
        size = min(height, width)
    if name == "toy-teacher" and height != width:
        raise ConfigError(f"toy-teacher is for square images, and a sample is {list(shape)}")
    fits = {"channels": channels, "num_classes": num_classes, "size": size}
    takes = _parameters(name)
    return {key: value for key, value in fits.items() if key in takes}


def example_shape(classifier: nn.Module) -> tuple[int, int, int]:
    """(C, H, W) of an image that a classifier reads; sides of 32 where any will do."""
    _, config, _ = classifier_recipe(classifier)
    size = config.get("size", 32)
    height, width = (size, size) if isinstance(size, int) else size
    return config.get("channels", 3), height, width


def _parameters(name: str) -> list[str]:
    """The arguments that a named classifier or a function of the user's has."""
    if ":" not in name and name not in CLASSIFIERS:
        raise unknown("classifier", name, CLASSIFIERS)
    function: Any = import_function(name) if ":" in name else CLASSIFIERS[name]
    parameters = signature(function).parameters.values()
    if any(p.kind is Parameter.VAR_KEYWORD for p in parameters):
        return ["channels", "num_classes", "size"]
    return [p.name for p in parameters if p.name != "self"]
