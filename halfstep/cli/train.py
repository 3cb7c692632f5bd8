"""`halfstep train denoiser`."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

from halfstep.cli.options import Flat, parse, Source, Where
from halfstep.cli.plan import rehearse
from halfstep.cli.progress import loading, say, terminal
from halfstep.cli.runs import carried_out, describe, describe_data, updates_on
from halfstep.data import Data, Dataset, Latents
from halfstep.denoiser import Denoiser, NetTime, Told
from halfstep.errors import ConfigError
from halfstep.kinds import NotNegative
from halfstep.methods.denoising import Denoising
from halfstep.nets import build, fitting
from halfstep.noise import key, untouched
from halfstep.pipeline import Pipeline, schedule_from
from halfstep.prediction import PARAMETERISATIONS
from halfstep.schema import literals
from halfstep.training import Training
from halfstep.training.denoisers import train
from halfstep.training.jobs import Job
from halfstep.workflows.locate import codec_of


@dataclass(frozen=True, kw_only=True)
class Network:
    """The network, and how it is read."""

    net: str = "uvit"
    """uvit, unet, dit, mlp, or package.module:function of your own."""
    net_config: dict[str, str] = field(default_factory=dict)
    """The network's own options, as NAME VALUE pairs: embed_dim 64 depth 4."""
    labels: bool = False
    """Condition on the data's labels."""
    texts: bool = False
    """Condition on the states of the data's texts."""
    predicts: Literal["x0", "eps", "v", "velocity", "x0-and-eps"] = "v"
    """What the network puts out."""
    noise_schedule: Literal["cosine", "vp-linear", "rectified-flow", "karras", "beta-table"] = (
        "cosine"
    )
    """Levels of signal and noise; table is diffusers' table of betas."""
    schedule_config: dict[str, str] = field(default_factory=dict)
    """The schedule's own options, as NAME VALUE pairs: kind scaled_linear zero_snr true."""
    time_of: Literal["t", "logsnr"] = "t"
    """What the network is told of the time."""
    time_scale: Told = 1000.0
    """Factor on it."""
    time_offset: Told = 0.0
    """Added to it: a diffusers network on a table of 1000 has -1."""
    sampling_clip: NotNegative = 1.0
    """Clip predicted images to +- this when sampling; 0 leaves them. Points and latents never are."""


@dataclass(frozen=True, kw_only=True)
class TrainDenoiser:
    """Train a diffusion teacher from data."""

    where: Annotated[Where, Flat]
    source: Annotated[Source, Flat]
    network: Annotated[Network, Flat] = field(default_factory=Network)
    method: Annotated[Denoising, Flat] = field(default_factory=Denoising)
    training: Annotated[Training, Flat] = field(default_factory=Training)


def denoiser(argv: Sequence[str]) -> int:
    """Train a teacher; say where it is."""
    console = terminal()
    options = parse(TrainDenoiser, argv, prog="halfstep train denoiser")
    options.where.check()
    data = loading(console, options.source)
    method, training, where = options.method, options.training, options.where
    pipeline = fresh_pipeline(options.network, data, method.drop_labels > 0, training.seed)

    def work(job: Job) -> None:
        train(pipeline, data, where.out, method=method, training=training, job=job)

    if where.dry_run:
        return rehearse(console, options, work)
    say(console, "network", describe(pipeline))
    say(console, "data", describe_data(options.source, data))
    say(console, "updates", updates_on(method.updates, training, where.device))
    with carried_out(where, options, console) as job:
        work(job)
    out, own = shlex.quote(str(where.out)), own_net(options.network.net)
    source = as_typed(options.source)
    say(console, "teacher", where.out / "stages" / "teacher")
    say(console, "look", f"halfstep sample {out} --out {out}/samples{own}")
    say(
        console, "next", f"halfstep distill progressive --teacher {out}{own} {source} --out STUDENT"
    )
    return 0


def as_typed(source: Source) -> str:
    """The options that name this data, for a later command."""
    sides = [
        f"--{name} {value}" for name in ("size", "channels") if (value := getattr(source, name))
    ]
    flip = ["--flip"] if source.flip else []
    return " ".join([f"--data {shlex.quote(source.data)}", *sides, *flip])


def own_net(net: str | None) -> str:
    """The option that a later command needs to build a network of the user's own."""
    return f" --net {shlex.quote(net)}" if net is not None and ":" in net else ""


def fresh_pipeline(network: Network, data: Data, guided: bool, seed: int) -> Pipeline:
    """A pipeline that fits the data, with weights that depend on the seed alone."""
    if network.labels and not data.classes:
        raise ConfigError("--labels needs labelled data, and this has no labels: leave it out")
    reads = PARAMETERISATIONS[network.predicts]
    classes = data.classes if network.labels else 0
    rows = classes + guided if classes else None
    own = literals(network.net_config)
    codec = codec_of(data) if isinstance(data, Latents) else None
    empty = data.null_context if isinstance(data, Latents) and network.texts else None
    if network.texts and empty is None:
        raise ConfigError(
            "--texts needs latents that were encoded with --text, and this data has no texts: leave it out"
        )
    fits = fitting(
        network.net,
        data.shape,
        outputs=reads.outputs,
        num_classes=rows,
        context=None if empty is None else (empty.shape[0], empty.shape[1]),
    )
    config = {**fits, **own}
    with untouched(key(seed, 0)):
        net = build(network.net, config)
    time = NetTime(network.time_of, network.time_scale, network.time_offset)
    schedule = {"name": network.noise_schedule, **literals(network.schedule_config)}
    return Pipeline(
        Denoiser(net, schedule_from(schedule), reads, time=time),
        data.shape,
        classes=data.names or tuple(map(str, range(classes))) if classes else (),
        null=classes if classes and guided else None,
        clip=network.sampling_clip if network.sampling_clip and _pixels(data) else None,
        codec=codec,
        empty=empty,
    )


def _pixels(data: Data) -> bool:
    return isinstance(data, Dataset) and data.is_images
