"""`halfstep sample`: images from a teacher or a student."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from rich.console import Console
from torch import Tensor

from halfstep.cli.find import find_pipeline
from halfstep.cli.options import parse
from halfstep.cli.progress import counting, say, terminal
from halfstep.errors import ConfigError
from halfstep.pipeline import Pipeline
from halfstep.report.pictures import save_grid, save_images, scatter
from halfstep.training.parallel import pick_device


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Draw images: one PNG a seed, and a grid of them."""

    pipeline: Annotated[Path, tyro.conf.Positional]
    """A teacher's or student's folder, or the run that made it."""
    out: Path
    """Folder for the images."""
    n: int = 16
    """How many."""
    first: int = 0
    """Number of the first: image k of a seed is always the same."""
    seed: int = 0
    """The seed."""
    steps: int | None = None
    """Sampler steps; a student's own by default, 64 for a teacher."""
    sampler: str = "ddim"
    """ddim, heun, dpmpp-2m, ancestral, or diffusers:NAME for one of diffusers' schedulers."""
    variance: float = 0.0
    """Of the ancestral sampler: 0 is the small, 1 the large."""
    labels: tuple[int, ...] = ()
    """Classes, in turn; all of them by default."""
    guidance: float = 1.0
    """Guidance scale, 1 is off."""
    batch: int = 256
    """Images at a time."""
    npz: bool = False
    """Write samples.npz as well: float32 [n, ...], images in [-1, 1]."""
    device: str = "auto"
    """auto, or one by name."""
    net: str | None = None
    """package.module:function, if the network is one of your own."""


def sample(argv: Sequence[str]) -> int:
    """Sample and write; say where."""
    console = terminal()
    options = parse(Sample, argv, prog="halfstep sample")
    if options.n < 1 or options.batch < 1:
        raise ConfigError(f"n and batch must be at least 1, got {options.n} and {options.batch}")
    pipeline = find_pipeline(options.pipeline, steps=options.steps, net=options.net)
    drawn = _drawn(pipeline)
    if not (drawn or options.npz):
        raise ConfigError(
            f"samples of shape {list(pipeline.shape)} are no picture: add --npz to write them as numbers"
        )
    pipeline.to(pick_device(options.device))
    x = _draw(options, pipeline, console)
    options.out.mkdir(parents=True, exist_ok=True)
    if drawn == "images":
        paths = save_images(x, options.out, first=options.first)
        last = f" to {paths[-1].name}" if len(paths) > 1 else ""
        say(console, "images", f"{paths[0]}{last}")
        save_grid(x, options.out / "grid.png")
    elif drawn:
        scatter(options.out / "grid.png", [(f"{len(x):,} samples", x)])
    if drawn:
        say(console, "all", options.out / "grid.png")
    if options.npz:
        np.savez(options.out / "samples.npz", images=x.numpy())
        say(console, "numbers", options.out / "samples.npz")
    return 0


def _draw(options: Sample, pipeline: Pipeline, console: Console) -> Tensor:
    steps = len(pipeline.grid(options.steps)) - 1
    labels = None
    if options.labels:
        numbers = range(options.first, options.first + options.n)
        labels = [options.labels[k % len(options.labels)] for k in numbers]
    batches = -(-options.n // options.batch)
    plural = "s" if steps > 1 else ""
    what = f"{options.n:,} samples in {steps} step{plural}"
    with counting(console, what, steps * batches) as advance:
        return pipeline.sample(
            options.n, seed=options.seed, steps=options.steps, sampler=options.sampler, labels=labels,
            guidance=options.guidance, variance=options.variance, batch=options.batch,
            first=options.first, progress=advance,
        )  # fmt: skip


def _drawn(pipeline: Pipeline) -> str:
    """images, points, or nothing: how these samples can be shown."""
    if len(pipeline.shape) == 3 and pipeline.shape[0] in (1, 3):
        return "images"
    return "points" if pipeline.shape == (2,) else ""
