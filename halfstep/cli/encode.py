"""`halfstep encode`: from images to the noise that a model makes them of."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
from rich.console import Console
from torch import Tensor

from halfstep import files
from halfstep.cli.encoded import Encoded, stem
from halfstep.cli.images import images_for
from halfstep.cli.options import Flat, parse
from halfstep.cli.progress import counting, say, terminal
from halfstep.cli.sample import classes_of, drawn_as
from halfstep.config.fields import POSITIONAL
from halfstep.errors import ConfigError, DataError
from halfstep.identity import digest_of
from halfstep.kinds import Count, CountOrNone
from halfstep.pipeline import Pipeline
from halfstep.report.pictures import save_over
from halfstep.training.parallel import pick_device
from halfstep.workflows.locate import chosen_pipeline, Official


@dataclass(frozen=True, kw_only=True)
class ToNoise:
    """Turn images into the noise that a model makes them of; `halfstep sample --noise` turns it back."""

    pipeline: Annotated[Path | None, POSITIONAL] = None
    """A teacher's folder, an encoder's (halfstep distill encoder), or the run that made it."""
    official: Annotated[Official, Flat] = field(default_factory=Official)
    images: str
    """A picture, a folder of them, or data by name: all that --data is elsewhere, but no latents."""
    out: Path
    """NAME.safetensors: the noise.  NAME.json says how it was made, NAME.png shows it."""
    n: Count = 16
    """How many, at most."""
    first: CountOrNone = 0
    """Number of the first image."""
    steps: int | None = None
    """Steps; an encoder's own by default, else 64."""
    classes: str = ""
    """Numbers of classes that the images are of, in turn; by default the labels of the data."""
    prompt: tuple[str, ...] = ()
    """Texts of the images, in turn, for a model that reads them."""
    guidance: float = 1.0
    """Guidance scale, 1 is off."""
    batch: CountOrNone = 0
    """Images at a time; 0 is 256, and 8 where there is a codec."""
    device: str = "auto"
    """auto, or one by name."""
    net: str | None = None
    """package.module:function, if the network is one of your own."""


def encode(argv: Sequence[str]) -> int:
    """Encode and write; say where."""
    console = terminal()
    options = parse(ToNoise, argv, prog="halfstep encode")
    stem(options.out)  # refuses a name that is none
    files.check_writable(options.out.parent, "choose another --out")
    asks = "halfstep encode needs the folder of a pipeline"
    pipeline = chosen_pipeline(
        asks, options.pipeline, options.official, steps=options.steps, net=options.net
    )
    images, labels = _images(console, options, pipeline)
    own = [len(times) - 1 for times in pipeline.times] or [pipeline.steps]
    steps = options.steps or min(own)
    noise = _noise(
        console, options, pipeline.to(pick_device(options.device)), images, labels, steps
    )
    about = {
        "pipeline": str(options.pipeline or options.official.model),
        "weights": digest_of(pipeline.denoiser)[:16],
        "images": options.images,
        "first": options.first,
        "steps": steps,
        "guidance": options.guidance,
        "classes": list(pipeline.classes),
        "prompts": _prompts(options, len(images)),
    }
    told = None if labels is None else torch.tensor(labels)
    Encoded(noise, images, told, about).save(options.out)
    say(console, "noise", options.out)
    if images.shape == noise.shape and drawn_as(pipeline) == "images":
        shown = options.out.with_suffix(".png")
        save_over(images, noise / 3, shown)  # nearly all of it lies within 3
        say(console, "all", f"{shown}: images above, their noise below")
    place = "TEACHER" if pipeline.times or options.pipeline is None else str(options.pipeline)
    out = shlex.quote(str(options.out))
    scale = "" if options.guidance == 1 else f" --guidance {options.guidance:g}"
    say(
        console,
        "look",
        f"halfstep sample {place} --noise {out}{scale} --steps {steps} --out back.png",
    )
    return 0


def _images(
    console: Console, options: ToNoise, pipeline: Pipeline
) -> tuple[Tensor, list[int] | None]:
    """The images, and what the model is told that they are."""
    classes = classes_of(options.classes)
    if classes and options.prompt:
        raise ConfigError("a model reads classes or texts: leave --classes or --prompt out")
    seen = images_for(console, options.images, pipeline, labelled=not classes)
    numbers = list(range(options.first, min(options.first + options.n, len(seen))))
    if not numbers:
        raise ConfigError(
            f"'{options.images}' ends before image {options.first}: it has {len(seen):,}, from 0 on"
        )
    images, labels = seen.rows(numbers)
    if classes:
        labels = [classes[k % len(classes)] for k in range(len(numbers))]
    if pipeline.classes and labels is None:
        none = "" if pipeline.null is None else f" ({pipeline.null} says none)"
        raise ConfigError(
            f"'{options.images}' does not say of which classes its images are, and this model reads them: "
            f"write --classes and their numbers{none}"
        )
    return images, labels


def _noise(
    console: Console,
    options: ToNoise,
    pipeline: Pipeline,
    images: Tensor,
    labels: list[int] | None,
    steps: int,
) -> Tensor:
    """One row an image."""
    batch = options.batch or (8 if pipeline.codec is not None else 256)
    n = len(images)
    what = f"{n:,} image{'s' * (n > 1)} to noise in {steps} step{'s' * (steps > 1)}"
    with counting(console, what) as progress:
        noise = pipeline.encode(
            images, steps=options.steps, labels=labels, guidance=options.guidance, batch=batch,
            prompts=_prompts(options, n) or None,
            progress=progress,
        )  # fmt: skip
    if not bool(noise.isfinite().all()):
        raise DataError("some of the noise is nan or infinite: the walk to it has diverged")
    return noise


def _prompts(options: ToNoise, n: int) -> list[str]:
    """One an image, in turn, or none."""
    return [options.prompt[k % len(options.prompt)] for k in range(n)] if options.prompt else []
