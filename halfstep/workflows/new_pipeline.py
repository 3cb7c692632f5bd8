"""Build a pipeline with a fresh network for some data."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from halfstep.batch import Cond
from halfstep.config import JsonObject
from halfstep.config.validate import NotNegative, Validated
from halfstep.data import Data, Dataset, Latents
from halfstep.diffusion.denoiser import Denoiser, NetTime, TimeFactor
from halfstep.diffusion.prediction import PARAMETERISATIONS
from halfstep.errors import ConfigError
from halfstep.models import build, infer_config
from halfstep.models.network_inputs import INPUTS
from halfstep.pipeline import Pipeline, schedule_from
from halfstep.pipeline.conditioning import defaults_of, STATES
from halfstep.rng import fork_rng, key
from halfstep.schema import literals
from halfstep.workflows.default_sizes import completed
from halfstep.workflows.locate import codec_of


@dataclass(frozen=True, kw_only=True)
class NetworkOptions(Validated):
    """The network, its conditions, and the meaning of its output."""

    net: str = "uvit"
    """uvit, unet, dit, mlp, or package.module:function of your own."""
    net_config: dict[str, str] = field(default_factory=dict)
    """The network's own options, as NAME VALUE pairs: embed_dim 64 depth 4. A U-ViT's sizes follow from the
    data."""
    labels: bool = False
    """Condition on the data's labels."""
    texts: bool = False
    """Condition on the states of the data's texts."""
    predicts: Literal["x0", "eps", "v", "velocity", "x0-and-eps"] = "v"
    """Output of the network."""
    noise_schedule: Literal["cosine", "vp-linear", "rectified-flow", "karras", "beta-table"] = (
        "cosine"
    )
    """Noise schedule; beta-table is diffusers' table of betas."""
    schedule_config: dict[str, str] = field(default_factory=dict)
    """The schedule's own options, as NAME VALUE pairs: kind scaled_linear zero_snr true."""
    time_of: Literal["t", "sigma", "logsnr"] = "t"
    """The network's time input."""
    time_scale: TimeFactor = 1000.0
    """Factor on the time input."""
    time_offset: TimeFactor = 0.0
    """Offset added to the time input: a diffusers network on a table of 1000 has -1."""
    sampling_clip: NotNegative = 1.0
    """Clip predicted images to +- this when sampling; 0 is off. Points and latents are never clipped."""


def fresh_pipeline(network: NetworkOptions, data: Data, guided: bool, seed: int) -> Pipeline:
    """A pipeline that fits the data, with weights that depend on the seed alone.

    guided  labels are sometimes dropped, so that the network needs an embedding for no label

    `ConfigError` if the network should read labels or texts that the data does not have.
    """
    if network.labels and not data.num_classes:
        raise ConfigError("--labels needs labelled data, and this has no labels: leave it out")
    reads = PARAMETERISATIONS[network.predicts]
    classes = data.num_classes if network.labels else 0
    rows = classes + guided if classes else None
    codec = codec_of(data) if isinstance(data, Latents) else None
    null = data.null_context if isinstance(data, Latents) and network.texts else None
    states = None if null is None else null.encoder_hidden_states
    if network.texts and states is None:
        raise ConfigError(
            "--texts needs latents that were encoded with --text, and this data has no texts: leave it out"
        )
    inputs = INPUTS.get(network.net)
    if (
        states is None
        and inputs is not None
        and STATES in {*inputs.conditions} - {*inputs.optional}
    ):
        raise ConfigError(
            f"the net '{network.net}' reads texts: write --texts, and give latents that were encoded with "
            "--text"
        )
    config = infer_config(
        network.net,
        data.shape,
        outputs=reads.outputs,
        num_classes=rows,
        text_shape=None if states is None else (states.shape[1], states.shape[2]),
        text_widths={} if null is None else {k: v.shape[-1] for k, v in null.added.items()},
    )
    given = literals(network.net_config)
    _refuse_other_size(given, config, data.shape)
    if network.net == "uvit":
        given = completed(given, data.shape, len(data))
    with fork_rng(key(seed, 0)):
        net = build(network.net, {**config, **given})
    time = NetTime(network.time_of, network.time_scale, network.time_offset)
    schedule = {"name": network.noise_schedule, **literals(network.schedule_config)}
    return Pipeline(
        Denoiser(net, schedule_from(schedule), reads, time=time),
        data.shape,
        class_names=data.names or tuple(map(str, range(classes))) if classes else (),
        null=classes if classes and guided else None,
        clip=network.sampling_clip if network.sampling_clip and _pixels(data) else None,
        codec=codec,
        **({} if null is None else _read_texts(net, null)),
    )


def _refuse_other_size(given: JsonObject, config: JsonObject, shape: Sequence[int]) -> None:
    """`ConfigError` for a network of another size than the data."""
    for name in ("img_size", "sample_size"):
        if name in given and name in config and given[name] != config[name]:
            sides = " x ".join(map(str, shape[1:]))
            size = given[name] if isinstance(given[name], int) else shape[-1]
            raise ConfigError(
                f"--net-config {name} {given[name]} is another size than that of the data, {sides}: add "
                f"--size {size}, or leave {name} out"
            )


def _read_texts(net: nn.Module, null: Cond) -> dict[str, Any]:
    """The pipeline's conditions of the empty text: of the data's those that the network says it reads."""
    defaults, reads = defaults_of(null), getattr(net, "reads", None)
    added = {k: v for k, v in defaults["added"].items() if reads is None or k in reads}
    return {**defaults, "added": added}


def _pixels(data: Data) -> bool:
    return isinstance(data, Dataset) and data.is_images
