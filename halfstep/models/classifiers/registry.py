"""Classifiers by name; they map images [B, C, H, W] in [-1, 1] to logits [B, classes]."""

from collections.abc import Callable, Sequence
from functools import partial
from inspect import Parameter, signature
from typing import Any

from torch import nn

from halfstep.config import JsonObject, NetConfig
from halfstep.errors import ConfigError, unknown
from halfstep.models import import_function, plain_config, user_function
from halfstep.models.classifiers.cnns import Pooled, ResidualCNN, ToyStudent, ToyTeacher
from halfstep.models.classifiers.efficientnet import Lite0Classifier
from halfstep.models.classifiers.feature_cnn import Classifier
from halfstep.models.classifiers.preprocessing import Prepared, Preprocessing
from halfstep.models.limits import build_within_limits, refuse_unknown
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
"""Classifiers by name.  `package.module:function` is accepted wherever a name is.

features            gives the features of distances; it has no normalisation (see `Classifier`)
cnn                 a small residual network for images of about 28 x 28
shallow, deeper     the report's students
toy-teacher, toy-student  the report's toy example
efficientnet-lite0  optionally with ImageNet's weights, from the package that has them
"""


def build_classifier(
    name: str, config: NetConfig, *, preprocessing: Preprocessing | None = None
) -> nn.Module:
    """Build the named classifier, which remembers its recipe: see `classifier_recipe(net)`.

    name           one of `CLASSIFIERS`, or `package.module:function`: a user's function that takes the
                   config as arguments and returns a module
    config         its arguments; values that JSON cannot hold are refused, as they could not be saved
    preprocessing  of images in [-1, 1], before the network
    """
    saved_config = plain_config(name, config)
    if ":" in name:
        net = user_function(name)(**config)
    else:
        refuse_unknown(name, config, _parameters(name))
        net = build_within_limits(name, CLASSIFIERS[name], config)
    if not isinstance(net, nn.Module):
        raise ConfigError(f"{name} returned {type(net).__name__}: return a torch.nn.Module")
    preprocessing = preprocessing or Preprocessing()
    if preprocessing != Preprocessing():
        net = Prepared(net, preprocessing)
    net.recipe = name, saved_config, preprocessing  # type: ignore[assignment]
    return net


def classifier_recipe(net: nn.Module) -> tuple[str, JsonObject, Preprocessing]:
    """The name, config and preprocessing that `build_classifier` made this network from."""
    recipe = getattr(net, "recipe", None)
    if recipe is None and isinstance(net, Classifier):
        return "features", dict(net.config), Preprocessing()
    if recipe is None or len(recipe) != 3:
        raise ConfigError(
            f"this {type(net).__name__} was not made by build_classifier, so it could not be rebuilt from "
            "a file: build it with build_classifier('package.module:function', config)"
        )
    name, config, preprocessing = recipe
    return name, dict(config), preprocessing


def refuse_changed_classifier(net: nn.Module) -> None:
    """`ConfigError` for a classifier that `build_classifier` would no longer make from its recipe."""
    refuse_wrapped(net)
    name, config, preprocessing = classifier_recipe(net)
    if getattr(net, "quantised", None):  # the tensors are torchao's
        return
    fresh = partial(build_classifier, name, config, preprocessing=preprocessing)
    refuse_changed(net, fresh, name, draws=":" in name)


def class_names(net: nn.Module) -> tuple[str, ...]:
    """The names of its classes in order; () if they are unknown."""
    return tuple(getattr(net, "class_names", ()))


def label_smoothing(net: nn.Module) -> float:
    """The label smoothing of its training; 0 if it is unknown."""
    return float(getattr(net, "label_smoothing", 0.0))


def refuse_other_classes(
    first: Sequence[str], second: Sequence[str], first_owner: str, second_owner: str
) -> None:
    """`ConfigError` if both sides name their classes, and not the same in the same order.

    Numbers in order count as no names, since data without names has them.  Other numbers are names: folders
    1 to 10, or 0, 2 and 3, are not the labels 0 to 9, or 0 to 2.
    """
    named = [
        names for names in (first, second) if list(names) != [str(k) for k in range(len(names))]
    ]
    if len(named) == 1:
        for k, name in enumerate(named[0]):
            if name.isascii() and name.isdecimal() and int(name) != k:
                raise ConfigError(
                    f"class names of {first_owner} and {second_owner} differ: one calls class {k} "
                    f"'{name}', and the other has numbers only: give both the same names"
                )
    elif named and tuple(first) != tuple(second):
        raise ConfigError(
            f"{first_owner} has the classes {_listed(first)} and {second_owner} {_listed(second)}: class 0 "
            "of the one would be taken for class 0 of the other; give data of the same classes"
        )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")


def infer_classifier_config(name: str, shape: Sequence[int], num_classes: int) -> JsonObject:
    """Infer the part of the named classifier's config that the data determines.

    shape        of one image, (C, H, W)
    num_classes  number of classes

    A user's function gets those of channels, num_classes and size (a number, or [H, W]) that it takes.
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
    config = {"channels": channels, "num_classes": num_classes, "size": size}
    parameters = _parameters(name)
    return {key: value for key, value in config.items() if key in parameters}


def example_shape(classifier: nn.Module) -> tuple[int, int, int]:
    """The shape (C, H, W) of an image that a classifier reads, with sides of 32 if it takes any."""
    _, config, _ = classifier_recipe(classifier)
    size = config.get("size", 32)
    height, width = (size, size) if isinstance(size, int) else size
    return config.get("channels", 3), height, width


def _parameters(name: str) -> list[str]:
    """The arguments of a named classifier, or of a user's function."""
    if ":" not in name and name not in CLASSIFIERS:
        raise unknown("classifier", name, CLASSIFIERS)
    function: Any = import_function(name) if ":" in name else CLASSIFIERS[name]
    parameters = signature(function).parameters.values()
    if any(p.kind is Parameter.VAR_KEYWORD for p in parameters):
        return ["channels", "num_classes", "size"]
    return [p.name for p in parameters if p.name != "self"]
