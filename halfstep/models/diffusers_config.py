"""Configs of diffusers' networks: translated to halfstep's, and refused where halfstep cannot run them.

Networks are called as net(x, t, cond): one that needs other conditions is refused when it is built, and
one whose outputs the parameterisation does not read when its denoiser is made.
"""

from inspect import signature
from typing import Any

from halfstep.config import JsonObject, NetConfig
from halfstep.errors import ConfigError

CLASSES = {
    "unet": "UNet2DModel",
    "unet-condition": "UNet2DConditionModel",
    "dit": "DiTTransformer2DModel",
}
"""The diffusers class of each net."""
LABELS = {
    "UNet2DModel": "num_class_embeds",
    "UNet2DConditionModel": "num_class_embeds",
    "DiTTransformer2DModel": "num_embeds_ada_norm",
}
"""The option of a diffusers class for halfstep's num_classes; a DiT adds a null class to it."""
RUN = {
    "class_embed_type": (None,),
    "addition_embed_type": (None, "text", "text_time"),
    "encoder_hid_dim_type": (None, "text_proj"),
    "time_embedding_type": ("positional", "fourier"),
}
"""Options for further conditions of a network, with the values that need none."""
NEEDS = {
    "text_image": "the states of an image",
    "image": "the states of an image",
    "image_hint": "the states of an image and a hint",
    "text_image_proj": "the states of an image",
    "image_proj": "the states of an image",
    "ip_image_proj": "the states of an image",
    "timestep": "a number a sample, such as a noise level",
    "projection": "a vector a sample",
    "simple_projection": "a vector a sample",
    "identity": "a vector a sample",
    "learned": "whole numbers as times",
}
OURS = (
    "num_classes",
    "guidance_embed_dim",
    "t_end_embed_dim",
    "outputs",
    "learned_sigma",
    "inputs",
)
"""Options that halfstep adds."""
WRAP = (
    "write a function of your own that gives it what it needs, package.module:function "
    "(docs/how-to/own-network.md)"
)


def from_diffusers_config(name: str, config: NetConfig) -> JsonObject:
    """Translate the config of a diffusers network, `dict(model.config)`, to the options of `build`.

    diffusers' private keys, which begin with _, are left out.
    """
    class_name, expected = config.get("_class_name"), CLASSES.get(name)
    if class_name is not None and expected is not None and class_name != expected:
        net = next((net for net, each in CLASSES.items() if each == class_name), None)
        instead = f"write build('{net}', config)" if net else f"choose from {', '.join(CLASSES)}"
        raise ConfigError(
            f"this config is of a {class_name}, and the net '{name}' is a {expected}: {instead}"
        )
    options = {key: value for key, value in config.items() if not key.startswith("_")}
    if (class_name := expected or class_name_of(name)) is None:
        return options
    if len(options) < len(
        config
    ):  # from a model, which also keeps options that its class does not have
        known, off = _known(class_name), (None, False)
        options = {k: v for k, v in options.items() if k in known or not any(v is x for x in off)}
    if (labels := LABELS.get(class_name)) is None:
        return options
    if "out_channels" in options and options["out_channels"] is None:
        del options["out_channels"]
    rows = options.pop(labels, None)
    if rows is not None and not (name == "dit" and rows == 0):
        _translate(options, "num_classes", rows + (name == "dit"), labels, rows)
    features = options.pop("time_cond_proj_dim", None) if name == "unet-condition" else None
    if features is not None:
        _translate(options, "guidance_embed_dim", features, "time_cond_proj_dim", features)
    return options


def class_name_of(name: str) -> str | None:
    """The diffusers class of a net: of one of `CLASSES`, or of a net that is named as its class."""
    return CLASSES.get(name, name if name[:1].isupper() and ":" not in name else None)


def _translate(options: JsonObject, name: str, value: Any, theirs: str, their_value: Any) -> None:
    """Set halfstep's option from diffusers'; `ConfigError` if it has another value."""
    if options.get(name) not in (None, 0, value):
        raise ConfigError(
            f"{theirs}={their_value!r} is {name}={value!r} here, and {name} is {options[name]!r}: give one"
        )
    options[name] = value


def refuse_other_conditions(name: str, config: NetConfig) -> None:
    """`ConfigError` for a network that needs conditions which `Cond` does not have."""
    for key, runs in RUN.items():
        if (value := config.get(key, runs[0])) not in runs:
            raise ConfigError(
                f"the net '{name}' with {key}='{value}' needs {NEEDS.get(value, 'more')} besides labels, "
                f"texts and a guidance scale: {WRAP}"
            )
    classes = config.get("num_classes")
    if isinstance(classes, int) and classes < 1:
        raise ConfigError(
            f"num_classes is the number of labels, null label included, got {classes}: leave it out for a "
            "network without labels"
        )


def refuse_other_outputs(reads: int, channels: int, out: int, outputs: int) -> None:
    """`ConfigError` unless the network puts out the channels that the parameterisation reads.

    reads    channels that the parameterisation reads per channel of x
    channels, out  channels of the network, in and out
    outputs  channels out per channel of x by the config, or 0 if it does not say
    """
    if not outputs and out == 2 * channels:
        raise ConfigError(
            f"this network puts out {out} channels for {channels} of x: a prediction and learned "
            f"variances, which halfstep does not read.  If they are x0 and eps, build it with outputs=2 "
            f"for X0AndEps(); else {WRAP}, and returns the first {channels}"
        )
    if out != reads * channels:
        raise ConfigError(
            f"this network reads {channels} channels and puts out {out}, and the parameterisation reads "
            f"{reads} times the channels of x: give another parameterisation, or if the network reads more "
            f"than x, {WRAP}"
        )


def _known(class_name: str) -> set[str]:
    """The options of a diffusers class, and halfstep's."""
    import diffusers  # here, as it takes seconds

    return {*signature(getattr(diffusers, class_name, dict).__init__).parameters, *OURS}
