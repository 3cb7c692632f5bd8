"""`halfstep sample`: images from a teacher, a student, or a published model's weights."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
from rich.console import Console
from torch import Tensor

from halfstep import files
from halfstep.cli.images import Begin, MadeOf
from halfstep.cli.options import Flat, parse
from halfstep.cli.progress import counting, say, terminal
from halfstep.config.fields import POSITIONAL
from halfstep.errors import ConfigError, NonFinite
from halfstep.kinds import Count, CountOrNone, Share
from halfstep.pipeline import Pipeline
from halfstep.report.pictures import save_grid, save_images, save_over, scatter
from halfstep.training.parallel import pick_device
from halfstep.workflows.locate import chosen_pipeline, Official


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Draw images: one PNG a seed, and a grid of them; or the grid alone, where --out is a PNG."""

    pipeline: Annotated[Path | None, POSITIONAL] = None
    """A teacher's or student's folder, or the run that made it."""
    official: Annotated[Official, Flat] = field(default_factory=Official)
    out: Path
    """Folder for the images, or a .png for a grid of them."""
    n: Count | None = None
    """How many; 16 by default, or all that --noise holds."""
    first: CountOrNone = 0
    """Number of the first: image k of a seed is always the same."""
    seed: int = 0
    """The seed."""
    steps: int | None = None
    """Sampler steps; a student's own by default, a published model's as published, else 64."""
    sampler: str | None = None
    """ddim, heun, dpmpp-2m, ancestral, stochastic, dpmpp-3s, dpm-fast, euler-maruyama, or diffusers:NAME
    for one of diffusers' schedulers; by default a student's or a published model's own, else ddim."""
    variance: Share = 0.0
    """Of the ancestral sampler: 0 is the small, 1 the large."""
    classes: str = ""
    """Numbers of classes, such as 207,360, in turn; all of them by default."""
    per_class: CountOrNone = 0
    """So many of each class, side by side, instead of --n."""
    made_of: Annotated[MadeOf, Flat] = field(default_factory=MadeOf)
    prompt: tuple[str, ...] = ()
    """Texts, in turn, for a model that reads them; so many of each with --per-class."""
    guidance: float = 1.0
    """Guidance scale, 1 is off: the 1 + s of the official U-ViT's s."""
    size: tuple[Count, Count] | None = None
    """Height and width in pixels, if not those it was trained for."""
    batch: CountOrNone = 0
    """Images at a time; 0 is 256, and 8 where there is a codec."""
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
    sheet = options.out.suffix.lower() == ".png"
    files.check_writable(options.out.parent if sheet else options.out, "choose another --out")
    pipeline = _pipeline(options)
    drawn = drawn_as(pipeline)
    if not drawn and (sheet or not options.npz):
        raise ConfigError(
            f"samples of shape {list(pipeline.shape)} are no picture: give a folder as --out, and add "
            "--npz to write them as numbers"
        )
    if not sheet and options.out.exists() and not options.out.is_dir():
        raise ConfigError(
            f"'{options.out}' is a file and no picture: give a folder, or a .png, as --out"
        )
    if sheet and options.npz:
        raise ConfigError("numbers need a folder: give one as --out, or leave --npz out")
    x, of = _draw(options, pipeline.to(pick_device(options.device)), console)
    _write(options, console, x, of, drawn, sheet)
    return 0


def _pipeline(options: Sample) -> Pipeline:
    """The one in a folder, or a published one."""
    asks = "halfstep sample needs the folder of a pipeline"
    pipeline = chosen_pipeline(
        asks, options.pipeline, options.official, steps=options.steps, net=options.net
    )
    return pipeline if options.size is None else pipeline.at_size(*options.size)


def _draw(options: Sample, pipeline: Pipeline, console: Console) -> tuple[Tensor, Begin]:
    """The samples, and what they were made of; all that is asked is checked before the first call."""
    sampler = options.sampler or pipeline.own_sampler
    times = pipeline.grid(options.steps, sampler)
    classes = classes_of(options.classes)
    if classes and options.prompt:
        raise ConfigError("a model reads classes or texts: leave --classes or --prompt out")
    kinds = len(classes or options.prompt or pipeline.classes)
    if options.per_class and not kinds:
        raise ConfigError("--per-class needs --classes or --prompt: write --n instead")
    batch = options.batch or (8 if pipeline.codec is not None else 256)
    pipeline.check_counts(
        options.per_class * kinds or options.n or 0, seed=options.seed, batch=batch,
        first=options.first, variance=options.variance,
    )  # fmt: skip
    of = options.made_of.begin(
        console, pipeline, n=options.per_class * kinds or options.n, first=options.first,
        classed=bool(classes or options.per_class), guidance=options.guidance,
    )  # fmt: skip
    n, steps = of.n, len(of.grid(times, student=bool(pipeline.times))) - 1
    chosen = [
        k // options.per_class if options.per_class else k % max(kinds, 1)
        for k in range(options.first, options.first + n)
    ]
    numbers = classes or (list(range(kinds)) if options.per_class and not options.prompt else [])
    labels = [numbers[k % kinds] for k in chosen] if numbers else of.labels
    what = f"{n:,} samples in {steps} step{'s' if steps > 1 else ''}"
    with counting(console, what) as progress:
        x = pipeline.sample(
            n, seed=options.seed, steps=options.steps, sampler=sampler, labels=labels,
            prompts=[options.prompt[k % kinds] for k in chosen] if options.prompt else of.prompts,
            guidance=options.guidance, variance=options.variance, batch=batch,
            images=of.images, strength=of.strength, known=of.known, noise=of.noise,
            first=options.first, progress=progress,
        )  # fmt: skip
    if not bool(x.isfinite().all()):
        raise NonFinite(
            "some of the samples are nan or infinite: the walk to them has diverged; write other --guidance, "
            "--steps or --sampler"
        )
    return x, of


def classes_of(text: str) -> list[int]:
    """207,360 as [207, 360]."""
    try:
        return [int(word) for word in text.replace(",", " ").split()]
    except ValueError:
        raise ConfigError(
            f"--classes takes numbers of classes, got '{text}': write for example --classes 207,360"
        ) from None


def _write(
    options: Sample, console: Console, x: Tensor, of: Begin, drawn: str, sheet: bool
) -> None:
    folder = files.make_folder(options.out.parent if sheet else options.out)
    grid = options.out if sheet else folder / "grid.png"
    if drawn == "images":
        if not sheet:
            paths = save_images(x, folder, first=options.first)
            last = f" to {paths[-1].name}" if len(paths) > 1 else ""
            say(console, "images", f"{paths[0]}{last}")
        scale = max(1, min(4, 128 // x.shape[-1]))
        if of.originals is not None and of.originals.shape == x.shape:
            save_over(of.originals, x, grid, columns=options.per_class or None, scale=scale)
        else:
            save_grid(x, grid, columns=options.per_class or None, scale=scale)
    elif drawn:
        scatter(grid, [(f"{len(x):,} samples", x)])
    if drawn:
        say(console, "all", grid)
    if options.npz:
        with files.replacing(folder / "samples.npz") as (part,), part.open("wb") as file:
            np.savez(file, images=x.numpy())
        say(console, "numbers", folder / "samples.npz")


def drawn_as(pipeline: Pipeline) -> str:
    """images, points, or nothing: how these samples can be shown."""
    if pipeline.codec is not None:
        return "images"
    if len(pipeline.shape) == 3 and pipeline.shape[0] in (1, 3):
        return "images"
    return "points" if pipeline.shape == (2,) else ""
