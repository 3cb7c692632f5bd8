"""Configs of diffusers' networks: `dict(model.config)` in halfstep's words, and what halfstep does not run.

Networks are called as net(x, t, cond): one that needs other conditions is refused when it is built, and
one whose output is something else than a parameterisation reads when its denoiser is made.
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
"""diffusers' class of each net."""
LABELS = {
    "unet": "num_class_embeds",
    "unet-condition": "num_class_embeds",
    "dit": "num_embeds_ada_norm",
}
"""What diffusers calls the classes that halfstep calls num_classes; a DiT has one more, for none."""
RUN = {
    "class_embed_type": (None,),
    "addition_embed_type": (None, "text"),
    "encoder_hid_dim_type": (None, "text_proj"),
    "time_embedding_type": ("positional", "fourier"),
}
"""Options that say what else a network reads, and their values that need nothing else."""
NEEDS = {
    "text_time": "pooled text states and sizes, as SDXL does",
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
OURS = ("num_classes", "guidance_embed_dim", "outputs")
"""Options of halfstep's own."""
WRAP = (
    "write a function of your own that gives it what it needs, package.module:function "
    "(docs/how-to/own-network.md)"
)


def from_diffusers_config(name: str, config: NetConfig) -> JsonObject:
    """The config of a net of diffusers, as `dict(model.config)` has it, in the words of `build`.

    What diffusers keeps for itself (keys that begin with _) is left out, and None is not given.
    """
    given = dict(config)
    made, kind = given.get("_class_name"), CLASSES.get(name)
    if made is not None and kind is not None and made != kind:
        there = next((net for net, own in CLASSES.items() if own == made), None)
        instead = (
            f"write build('{there}', config)" if there else f"choose from {', '.join(CLASSES)}"
        )
        raise ConfigError(
            f"this config is of a {made}, and the net '{name}' is a {kind}: {instead}"
        )
    given = {key: value for key, value in given.items() if not key.startswith("_")}
    if kind is None:
        return given
    if len(given) < len(config):  # a model's own, which keeps what its class does not know
        known, nothing = _known(name), (None, False)
        given = {k: v for k, v in given.items() if k in known or not any(v is n for n in nothing)}
    if "out_channels" in given and given["out_channels"] is None:
        del given["out_channels"]
    rows = given.pop(LABELS[name], None)
    if rows is not None and not (name == "dit" and rows == 0):
        _same(given, "num_classes", LABELS[name], rows + (name == "dit"), rows)
    features = given.pop("time_cond_proj_dim", None) if name == "unet-condition" else None
    if features is not None:
        _same(given, "guidance_embed_dim", "time_cond_proj_dim", features, features)
    return given


def _same(config: JsonObject, ours: str, theirs: str, value: Any, said: Any) -> None:
    """Give the option the value that diffusers' one says; `ConfigError` where it has another."""
    if config.get(ours) not in (None, 0, value):
        raise ConfigError(
            f"{theirs}={said!r} is {ours}={value!r} here, and {ours} is {config[ours]!r}: give one of them"
        )
    config[ours] = value


def refuse_other_conditions(name: str, config: NetConfig) -> None:
    """`ConfigError` for a network that reads what `Cond` does not say."""
    for key, runs in RUN.items():
        if (value := config.get(key, runs[0])) not in runs:
            raise ConfigError(
                f"the net '{name}' with {key}='{value}' needs {NEEDS.get(value, 'more')} besides labels, "
                f"texts and a guidance scale: {WRAP}"
            )
    classes = config.get("num_classes")
    if isinstance(classes, int) and classes < 1:
        raise ConfigError(
            f"num_classes is the number of labels, null label included, got {classes}: leave it out where "
            "there are none"
        )


def refuse_other_outputs(reads: int, channels: int, out: int, outputs: int) -> None:
    """`ConfigError` unless so many channels out for those of x are what is read.

    reads    how many times x's channels a parameterisation reads
    outputs  how many times the config says that they come out, or 0 if it does not
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


def _known(name: str) -> set[str]:
    """What halfstep and diffusers call the options of this net."""
    import diffusers  # here, as it takes seconds

    return {*signature(getattr(diffusers, CLASSES[name]).__init__).parameters, *OURS}
