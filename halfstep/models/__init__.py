"""Networks, called as net(x, t, cond).  `build` makes one from a name and a config.

diffusers is imported only when one of its models, such as the U-ViT, is built.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from inspect import Parameter, signature
from typing import Any, TYPE_CHECKING

from torch import nn

from halfstep.config import JsonObject, NetConfig
from halfstep.errors import ConfigError, unknown
from halfstep.models.adapters import Adapter, UViTNet
from halfstep.models.classifiers.feature_cnn import Classifier
from halfstep.models.diffusers_config import (
    class_name_of,
    CLASSES,
    from_diffusers_config,
    LABELS,
    refuse_other_conditions,
    WRAP,
)
from halfstep.models.diffusers_net import (
    diffusers_class,
    diffusers_net,
    DiffusersNet,
)
from halfstep.models.limits import build_within_limits, refuse_unknown
from halfstep.models.mlp import MLPNet, ResidualMLP
from halfstep.models.network_inputs import INPUTS, inputs_of, NetworkInputs
from halfstep.schema import SchemaError, validated

if TYPE_CHECKING:
    from halfstep.models.uvit.model import UViT

__all__ = [
    "NETS",
    "Adapter",
    "Classifier",
    "DiffusersNet",
    "MLPNet",
    "NetworkInputs",
    "ResidualMLP",
    "UViT",
    "UViTNet",
    "build",
    "build_like",
    "copy_recipe",
    "infer_config",
    "recipe",
    "wrap_diffusers",
]


def __getattr__(name: str) -> Any:
    if name != "UViT":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from halfstep.models.uvit.model import UViT

    return UViT


def _uvit(**config: Any) -> UViTNet:
    from halfstep.models.uvit.model import UViT

    refuse_unknown("uvit", config, signature(UViT).parameters)
    model = UViT(**config)
    return UViTNet(model, model.num_classes if model.label_emb is not None else None)


def _mlp(**config: Any) -> MLPNet:
    refuse_unknown("mlp", config, signature(ResidualMLP).parameters)
    return MLPNet(ResidualMLP(**config), config.get("num_classes"))


NETS: dict[str, Callable[..., nn.Module]] = {
    "uvit": _uvit,
    **{name: partial(diffusers_net, name, class_name) for name, class_name in CLASSES.items()},
    "mlp": _mlp,
}
"""Networks by name.  The name of a diffusers class, or `package.module:function`, is accepted as well."""
LATER = {
    "clip_dim": (None,),
    "num_clip_token": (77,),
    "attention": ("auto",),
    "guidance_embed_dim": (0,),
    "output_heads": (0,),
    "t_end_embed_dim": (0,),
}
"""Arguments added after the first runs, with the defaults that are left out of a recipe, so that such a run
can be resumed."""


def build(name: str, config: NetConfig) -> nn.Module:
    """Build the named network, which remembers its recipe: `recipe(net)` is (name, config).

    Args:
        name: one of `NETS`; the name of another class of diffusers, such as SD3Transformer2DModel; or
            `package.module:function`: a user's function that takes the config as arguments and returns a
            module called as net(x, t, cond).
        config: its arguments; values that JSON cannot hold are refused, as they could not be saved. For a
            network of diffusers `dict(model.config)` is accepted. `inputs`, a mapping of the fields of
            `NetworkInputs`, says how a class is called that halfstep does not know.

    Returns:
        A module called as net(x, t, cond), with x float [B, C, ...] and t float [B].

    Raises:
        ConfigError: an unknown name or option, or sizes that no network can have.
    """
    is_users = ":" in name
    config = dict(config) if is_users else from_diffusers_config(name, config)
    saved_config = plain_config(name, config)
    net = user_function(name)(**config) if is_users else _build_named(name, config)
    if not isinstance(net, nn.Module):
        raise ConfigError(f"{name} returned {type(net).__name__}: return a torch.nn.Module")
    _refuse_diffusers(name, type(net))
    if name in ("uvit", "mlp"):  # with all defaults: a later version may have others
        full: Any = net.model.config  # type: ignore[union-attr]
        saved_config = plain_config(
            name, {k: full[k] for k in full if k[0] != "_" and LATER.get(k) != (full[k],)}
        )
    net.recipe = name, saved_config  # type: ignore[assignment]
    return net


def wrap_diffusers(model: Any, inputs: JsonObject | None = None) -> DiffusersNet:
    """A network of diffusers that exists already, as one that `build` could have made; it is not copied.

    inputs  how its forward is called, for a class that halfstep does not know
    """
    class_name = type(model).__name__
    name = _net_of_class(class_name) or class_name
    config = from_diffusers_config(name, {**dict(model.config), "_class_name": class_name})
    if inputs is not None:
        config["inputs"] = inputs
    how = inputs_of(class_name, config)
    refuse_other_conditions(name, config)
    if not how.packed and config.get("out_channels") == 2 * config.get("in_channels", 0):
        config["learned_sigma"] = True
    names = "num_classes", "guidance_embed_dim", "t_end_embed_dim", "learned_sigma"
    net = DiffusersNet(model, how, **{k: config[k] for k in names if k in config})
    net.outputs = 0
    net.recipe = name, plain_config(name, config)  # type: ignore[assignment]
    return net


def _build_named(name: str, config: NetConfig) -> nn.Module:
    return build_within_limits(name, _named(name), config)


def recipe(net: nn.Module) -> tuple[str, JsonObject]:
    """The name and config that `build` made this network from."""
    made_from = getattr(net, "recipe", None)
    if made_from is None:
        raise ConfigError(
            f"this {type(net).__name__} was not made by halfstep.models.build, so it could "
            "not be rebuilt from a file: build it with build('package.module:function', config)"
        )
    name, config = made_from
    return name, dict(config)


def build_like(net: nn.Module, config: NetConfig) -> nn.Module:
    """Build a fresh network of this config by the function that made `net`.

    A network that was loaded with a function is built by it: the recipe's name came from a file.
    """
    made: Callable[..., nn.Module] | None = getattr(net, "made_by", None)
    if made is None:
        return build(recipe(net)[0], config)
    new = made(**config)
    copy_recipe(new, net, config)
    return new


def copy_recipe(new: nn.Module, net: nn.Module, config: NetConfig) -> None:
    """Give a network the recipe of `net`, with this config.

    The function that made `net` is copied too: a name from a file must not be imported.
    """
    name = recipe(net)[0]
    new.recipe = name, plain_config(name, config)  # type: ignore[assignment]
    if hasattr(net, "made_by"):
        new.made_by = net.made_by


def infer_config(
    name: str,
    shape: Sequence[int],
    *,
    outputs: int = 1,
    num_classes: int | None = None,
    text_shape: tuple[int, int] | None = None,
    text_widths: Mapping[str, int] | None = None,
) -> JsonObject:
    """Infer the part of the named net's config that the data determines.

    shape        of one sample: (C, H, W), or (D,) for points
    outputs      how many times the channels of x come out (`Parameterisation.outputs`)
    num_classes  rows of the label embedding, null class included; None: no labels
    text_shape   (tokens, width) of the text states; None: no texts
    text_widths  last sides of the texts' other tensors, by name
    """
    conditions: JsonObject = {} if num_classes is None else {"num_classes": num_classes}
    if ":" in name:
        return conditions if text_shape is None else conditions | {"text_shape": list(text_shape)}
    _named(name)
    conditions |= _text_sides(name, text_shape, text_widths or {})
    if len(shape) != (1 if name == "mlp" else 3):
        kind = "points, shape [D]" if name == "mlp" else "images, shape [C, H, W]"
        raise ConfigError(f"the net '{name}' is for {kind}, and a sample is {list(shape)}")
    if name == "mlp":
        return {"dim": shape[0], "out_dim": outputs * shape[0], **conditions}
    if name in INPUTS and INPUTS[name].packed:
        raise ConfigError(
            f"the net '{name}' reads packed samples, and data do not determine its sides: choose 'uvit', "
            "'dit' or SD3Transformer2DModel, or distil a pipeline that has one"
        )
    channels, height, width = shape
    size = height if height == width else [height, width]
    if name == "uvit":
        sides = {"img_size": size, "in_chans": channels, "out_chans": outputs * channels}
        return sides | conditions
    if name == "dit" and height != width:
        raise ConfigError(f"the net 'dit' is for square images, and a sample is {list(shape)}")
    sides = {"sample_size": size, "in_channels": channels, "out_channels": outputs * channels}
    if outputs > 1:  # without it the network would seem to have learned variances
        sides["outputs"] = outputs
    return sides | conditions


def _text_sides(
    name: str, text_shape: tuple[int, int] | None, text_widths: Mapping[str, int]
) -> dict[str, int]:
    if text_shape is None:
        return {}
    tokens, width = text_shape
    if name == "uvit":
        return {"clip_dim": width, "num_clip_token": tokens}
    if name == "unet-condition":  # it takes any number of tokens
        return {"cross_attention_dim": width}
    if name in INPUTS and "encoder_hidden_states" in INPUTS[name].widths:
        options = INPUTS[name].widths
        widths = {"encoder_hidden_states": width, **text_widths}
        return {options[k].split()[0]: side for k, side in widths.items() if k in options}
    raise ConfigError(
        f"the net '{name}' reads no texts, and the data has some: choose 'uvit' or 'unet-condition'"
    )


def _named(name: str) -> Callable[..., nn.Module]:
    if (net := _net_of_class(name)) is not None:
        raise ConfigError(f"diffusers' {name} is the net '{net}' here: write '{net}'")
    if name in NETS:
        return NETS[name]
    if class_name_of(name) is None or diffusers_class(name) is None:
        raise unknown("net", name, [*NETS, *(INPUTS.keys() - LABELS.keys())])
    return partial(diffusers_net, name, name)


def _net_of_class(class_name: str) -> str | None:
    """The name in `NETS` of a diffusers class."""
    return next((net for net, name in CLASSES.items() if name == class_name), None)


def _refuse_diffusers(name: str, kind: Any) -> None:
    """`ConfigError` for a class of diffusers, which is not called as net(x, t, cond)."""
    if getattr(kind, "__module__", "").partition(".")[0] != "diffusers":
        return
    net = _net_of_class(kind.__name__)
    raise ConfigError(
        f"'{name}' is diffusers' {kind.__name__}, which is not called as net(x, t, cond): "
        f"{f'write build({net!r}, config)' if net else WRAP}"
    )


def user_function(name: str) -> Callable[..., nn.Module]:
    """Import a user's function, with its arguments checked before it is called."""
    function = import_function(name)
    _refuse_diffusers(name, function)

    def checked(**config: Any) -> nn.Module:
        parameters = signature(function).parameters.values()
        if not any(p.kind is Parameter.VAR_KEYWORD for p in parameters):
            refuse_unknown(name, config, [p.name for p in parameters])
        needed = [p.name for p in parameters if p.default is p.empty and p.kind not in _VARIADIC]
        if missing := [key for key in needed if key not in config]:
            raise ConfigError(f"the net '{name}' needs {', '.join(missing)} in its config")
        net: nn.Module = function(**config)
        return net

    return checked


def import_function(name: str, what: str = "net") -> Callable[..., Any]:
    """Import package.module:function; an error names it as this `what`."""
    module_name, _, function_name = name.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), function_name)):
        raise ConfigError(f"the {what} '{name}' names no function: write package.module:function")
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not module_name.startswith(error.name):
            raise  # the user's module exists; a module that it imports does not
        raise ConfigError(
            f"the {what} '{name}' cannot be imported: there is no module '{error.name}' (write "
            "package.module:function, and set PYTHONPATH to the folder that holds it)"
        ) from error
    function: Callable[..., Any] | None = getattr(module, function_name, None)
    if not callable(function):
        functions = [key for key, value in vars(module).items() if callable(value)]
        raise unknown(f"function in {module_name} called", function_name, functions)
    return function


_VARIADIC = Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD


def plain_config(name: str, config: NetConfig) -> JsonObject:
    """The config as JSON returns it; `ConfigError` for values that JSON cannot hold."""
    for key, value in config.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"the option '{key}' of the net '{name}' is a {type(value).__name__}, which JSON "
                "cannot hold, so it could not be saved: give numbers, words, lists of them"
            ) from error
    plain: JsonObject = json.loads(json.dumps(dict(config)))
    try:
        validated(plain, Any)
    except SchemaError as wrong:
        raise ConfigError(f"the net '{name}' could not be saved: its option {wrong}") from None
    return plain
