"""`halfstep train denoiser` and `halfstep train classifier`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import torch
from rich.console import Console
from torch import nn

from halfstep.cli.options import Flat, literals, parse, save_config, Source, Where
from halfstep.cli.plan import print_plan
from halfstep.cli.progress import Bars, loading
from halfstep.data import Dataset
from halfstep.denoiser import Denoiser, NetTime
from halfstep.errors import ConfigError
from halfstep.evaluation.features import save_classifier
from halfstep.methods.classification import Classification
from halfstep.methods.denoising import Denoising
from halfstep.nets import build, Classifier, fitting
from halfstep.noise import key
from halfstep.pipeline import Pipeline, schedule_from
from halfstep.prediction import PARAMETERISATIONS
from halfstep.training import Training
from halfstep.training.jobs import Job, load_weights, train, train_classifier


@dataclass(frozen=True, kw_only=True)
class Network:
    """The network, and how it is read."""

    net: str = "uvit"
    """uvit, unet, dit, mlp, or package.module:function of your own."""
    net_config: dict[str, str] = field(default_factory=dict)
    """The network's own options, as NAME VALUE pairs: embed_dim 64 depth 4."""
    labels: bool = False
    """Condition on the data's labels."""
    predicts: Literal["x0", "eps", "v", "velocity", "both"] = "v"
    """What the network puts out."""
    noise_schedule: Literal["cosine", "vp-linear", "straight", "karras", "table"] = "cosine"
    """Levels of signal and noise; table is diffusers' table of betas."""
    schedule_config: dict[str, str] = field(default_factory=dict)
    """The schedule's own options, as NAME VALUE pairs: kind scaled_linear zero_snr true."""
    time_of: Literal["t", "logsnr"] = "t"
    """What the network is told of the time."""
    time_scale: float = 1000.0
    """Factor on it."""
    time_offset: float = 0.0
    """Added to it: a diffusers network on a table of 1000 has -1."""
    sampling_clip: float = 1.0
    """Clip predicted images to +- this when sampling; 0 leaves them. Points are never clipped."""


@dataclass(frozen=True, kw_only=True)
class TrainDenoiser:
    """Train a diffusion teacher from data."""

    where: Annotated[Where, Flat]
    source: Annotated[Source, Flat]
    network: Annotated[Network, Flat] = field(default_factory=Network)
    method: Annotated[Denoising, Flat] = field(default_factory=Denoising)
    training: Annotated[Training, Flat] = field(default_factory=Training)


@dataclass(frozen=True, kw_only=True)
class TrainClassifier:
    """Train a small image classifier, for features and for labels."""

    where: Annotated[Where, Flat]
    source: Annotated[Source, Flat]
    method: Annotated[Classification, Flat] = field(default_factory=Classification)
    training: Annotated[Training, Flat] = field(default_factory=Training)


def denoiser(argv: Sequence[str]) -> int:
    """Train a teacher; say where it is."""
    console = Console()
    options = parse(TrainDenoiser, argv, prog="halfstep train denoiser")
    data = loading(console, options.source)
    pipeline = fresh_pipeline(
        options.network, data, options.method.drop_labels > 0, options.training.seed
    )
    where = options.where
    if where.dry_run:
        stages = options.method.stages(pipeline.denoiser, pipeline.null)
        return print_plan(console, stages, data, options.training, where.device)
    train(
        pipeline, data, where.out, method=options.method, training=options.training,
        job=job_of(where, console),
    )  # fmt: skip
    save_config(where.out, options)
    console.print(f"teacher  {where.out / 'stages' / 'teacher'}")
    return 0


def classifier(argv: Sequence[str]) -> int:
    """Train a classifier; say where it is and how well it knows what it has seen."""
    console = Console()
    options = parse(TrainClassifier, argv, prog="halfstep train classifier")
    data = loading(console, options.source)
    if len(data.shape) != 3 or data.labels is None:
        raise ConfigError(
            f"a classifier needs labelled images, and '{options.source.data}' has none"
        )
    torch.manual_seed(key(options.training.seed, 0))
    net = Classifier(channels=data.shape[0], classes=data.classes)
    where = options.where
    if where.dry_run:
        return print_plan(console, options.method.stages(net), data, options.training, where.device)
    train_classifier(
        net, data, where.out, write=save_classifier, read=_read_classifier, method=options.method,
        training=options.training, job=job_of(where, console),
    )  # fmt: skip
    save_config(where.out, options)
    console.print(f"classifier  {where.out / 'stages' / 'classifier'}")
    return 0


def _read_classifier(net: nn.Module, folder: Path) -> None:
    load_weights(net, folder / "classifier")


def fresh_pipeline(network: Network, data: Dataset, guided: bool, seed: int) -> Pipeline:
    """A pipeline that fits the data, with weights that depend on the seed alone."""
    if network.labels and not data.classes:
        raise ConfigError("--labels needs labelled data, and this has no labels: leave it out")
    reads = PARAMETERISATIONS[network.predicts]
    classes = data.classes if network.labels else 0
    rows = classes + guided if classes else None
    own = literals(network.net_config)
    config = {**fitting(network.net, data.shape, outputs=reads.outputs, num_classes=rows), **own}
    torch.manual_seed(key(seed, 0))
    time = NetTime(network.time_of, network.time_scale, network.time_offset)
    schedule = {"name": network.noise_schedule, **literals(network.schedule_config)}
    return Pipeline(
        Denoiser(build(network.net, config), schedule_from(schedule), reads, time=time),
        data.shape,
        classes=data.names or tuple(map(str, range(classes))) if classes else (),
        null=classes if classes and guided else None,
        clip=network.sampling_clip if network.sampling_clip and len(data.shape) == 3 else None,
    )


def job_of(where: Where, console: Console) -> Job:
    return Job(
        device=where.device,
        extend=where.extend,
        from_previous=where.from_previous,
        watch=Bars(console),
    )
