"""Images that `encode` and `sample` begin with: where they are, what they are of, which pixels are known."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor

from halfstep.cli.encoded import Encoded
from halfstep.cli.options import Source
from halfstep.cli.progress import loading, say
from halfstep.data import Data, Dataset, Latents
from halfstep.data.folder import read
from halfstep.errors import ConfigError, DataError
from halfstep.pipeline import Pipeline
from halfstep.pipeline.given import Given
from halfstep.timegrids import Times

EDGES = (48, 207)
"""Between these a pixel is neither black nor white."""


@dataclass(frozen=True, eq=False)
class Images:
    """The data that images are taken of, for a model.

    labels  the model's own label of each, or None where it has no classes or the data has no labels
    """

    data: Dataset
    labels: Tensor | None

    def __len__(self) -> int:
        return len(self.data)

    def rows(self, numbers: Sequence[int]) -> tuple[Tensor, list[int] | None]:
        """The images of these numbers, in turn where there are fewer, and their labels."""
        at = torch.tensor(numbers, dtype=torch.int64) % len(self)
        return self.data.batch(at).x0, None if self.labels is None else self.labels[at].tolist()


def images_for(console: Console, spec: str, pipeline: Pipeline, *, labelled: bool) -> Images:
    """The images of that name or place, of the size that the model makes; a picture is one.

    labelled  their labels are wanted: refused where they are none of the model's
    """
    place, shape = Path(spec).expanduser(), drawn_shape(pipeline)
    if is_picture(place):
        data: Data = Dataset(picture(place, shape[-1], shape[0])[None])
    else:
        sized = len(shape) == 3 and (place.is_dir() or spec.startswith("fashion-mnist"))
        size, channels = (shape[-1], shape[0]) if sized else (None, None)
        data = loading(console, Source(data=spec, size=size, channels=channels))
    if isinstance(data, Latents):
        raise ConfigError(f"'{spec}' holds latents: give the images that they were made of")
    if tuple(data.shape) != shape:
        raise ConfigError(
            f"'{spec}' holds samples of shape {list(data.shape)} and this model makes {list(shape)}: give "
            "such, or a folder of images, which are resized"
        )
    return Images(data, _labels(spec, data, pipeline) if labelled else None)


def drawn_shape(pipeline: Pipeline) -> tuple[int, ...]:
    """Of one sample as it is written: of an image where there is a codec."""
    return pipeline.shape if pipeline.codec is None else tuple(pipeline.sample(0).shape[1:])


def mask_for(path: Path, pipeline: Pipeline, images: str) -> Tensor:
    """bool [1, 1, H, W]: where the picture is white, cropped and resized as the images are."""
    shape = drawn_shape(pipeline)
    if len(shape) != 3:
        raise ConfigError(
            f"samples of shape {list(shape)} have no pixels to know: leave --known out"
        )
    found = picture(path, shape[-1], 1, mask=True)[None] > 127
    _refuse_mask(path, Path(images).expanduser())
    return found


def _refuse_mask(path: Path, images: Path) -> None:
    """A mask that is not black and white, or would be cropped elsewhere than its picture."""
    with Image.open(path) as opened:
        gray, (width, height) = np.asarray(opened.convert("L")), opened.size
    if ((gray > EDGES[0]) & (gray < EDGES[1])).mean() > 0.25:  # some at edges is smoothing
        raise DataError(
            f"{path} is gray, and a mask is black and white: save it white where pixels are kept, black "
            "elsewhere"
        )
    one, wanted = is_picture(images), (1, 1)
    if one:
        with Image.open(images) as opened:
            wanted = opened.size
    if abs(width * wanted[1] - height * wanted[0]) > max(width * wanted[1], 1) / 50:
        raise DataError(
            f"{path} is {width} x {height} and "
            + (f"its picture {wanted[0]} x {wanted[1]}" if one else "images are cropped to squares")
            + ": give a mask of the same proportions, so that both are cropped alike"
        )


def is_picture(place: Path) -> bool:
    """Whether this is one picture's file."""
    return place.is_file() and place.suffix.lower() not in (".npy", ".npz")


def picture(path: Path, size: int, channels: int, *, mask: bool = False) -> Tensor:
    """One file, uint8 [C, size, size]."""
    if not path.is_file():
        raise DataError(f"there is no file {path}: give a picture")
    found = read(path, size, channels)
    if isinstance(found, str):
        raise DataError(f"{path} cannot be read as an image ({found}): give another")
    if mask and _clear(path):
        raise DataError(
            f"{path} has transparent parts, and a mask is black and white: save it without, white where "
            "pixels are kept"
        )
    return torch.from_numpy(np.array(found))  # a copy: Pillow's own is read-only


def _clear(path: Path) -> bool:
    """Whether any of it is transparent."""
    with Image.open(path) as opened:
        least, _ = opened.convert("RGBA").getchannel("A").getextrema()
    return least != 255


def _labels(spec: str, data: Dataset, pipeline: Pipeline) -> Tensor | None:
    """Classes by name where both have names, else by number."""
    if data.labels is None or not pipeline.classes:
        return None
    names, own = data.names, pipeline.classes
    if not names:
        if data.classes > len(own):
            raise ConfigError(
                f"'{spec}' has {data.classes} classes and this model {len(own)}: say by --classes which "
                "of the model's these images are"
            )
        return data.labels
    used = sorted(set(data.labels.tolist()))
    if strange := [names[label] for label in used if names[label] not in own]:
        raise ConfigError(
            f"'{spec}' has images of '{strange[0]}', which is no class of this model "
            f"({', '.join(own[:12])}{', ...' if len(own) > 12 else ''}): say by --classes which they are"
        )
    return torch.tensor([own.index(name) if name in own else -1 for name in names])[data.labels]


@dataclass(frozen=True, kw_only=True)
class MadeOf:
    """What samples are made of, if not of a seed's noise."""

    noise: Path | None = None
    """Noise that halfstep encode wrote: decode it, as the classes it was encoded as or as --classes."""
    images: str | None = None
    """A picture, a folder or data, in turn: begin with them (--strength), or keep a part (--known)."""
    strength: float | None = None
    """Time from which on a sample leaves its image, in (0, 1]: 0.3 changes little, 1 all of it."""
    known: Path | None = None
    """A picture that is white where the images' pixels are kept, to the bit."""

    def begin(
        self, console: Console, pipeline: Pipeline, *, n: int | None, first: int, classed: bool,
        guidance: float,
    ) -> "Begin":  # fmt: skip
        """What the options say, read.

        n         how many samples were asked for, or None
        classed   classes were asked for, so that those of the data do not count
        guidance  the scale that they are drawn at
        """
        if self.noise is not None:
            if self.images or self.strength is not None or self.known or first:
                raise ConfigError(
                    "--noise is what samples begin with: leave --images, --strength, --known and --first "
                    "out"
                )
            found = Encoded.load(self.noise)
            scale = found.about.get("guidance", 1.0)
            if scale != guidance:
                say(
                    console,
                    "note",
                    f"'{self.noise}' was encoded at guidance {scale:g} and is decoded at {guidance:g}: "
                    f"--guidance {scale:g} gives the images back",
                )
            return _of_noise(found, str(self.noise), pipeline, n, classed)
        if self.images is None:
            if self.strength is not None or self.known:
                raise ConfigError("--strength and --known are about images: give them as --images")
            return Begin(16 if n is None else n)
        if self.strength is None and self.known is None:
            raise ConfigError(
                "--images alone does not say what becomes of them: write --strength (0.3 changes little, 1 "
                "all), or --known and a mask of what is kept"
            )
        strength = 1.0 if self.strength is None else self.strength
        mask = None if self.known is None else mask_for(self.known, pipeline, self.images)
        seen = images_for(console, self.images, pipeline, labelled=not classed)
        n = 16 if n is None else n
        images, labels = seen.rows(range(first, first + n))
        return Begin(
            n, images=images, labels=labels, strength=strength, known=mask, originals=images
        )


@dataclass(frozen=True, eq=False)
class Begin:
    """What samples begin with, as `Pipeline.sample` takes it, and what is drawn above them."""

    n: int
    labels: list[int] | None = None
    prompts: list[str] | None = None
    images: Tensor | None = None
    strength: float = 1.0
    known: Tensor | None = None
    noise: Tensor | None = None
    originals: Tensor | None = None

    def grid(self, times: Times, *, student: bool) -> Times:
        """The part of the grid that is walked."""
        return Given(strength=self.strength).grid(times, student=student)


def _of_noise(found: Encoded, name: str, pipeline: Pipeline, n: int | None, classed: bool) -> Begin:
    n = len(found.noise) if n is None else n
    if n > len(found.noise):
        raise ConfigError(
            f"'{name}' holds {len(found.noise)} of noise, asked for {n}: leave --n out"
        )
    labels = None
    if not classed and pipeline.classes and found.labels is not None:
        if list(pipeline.classes) != found.about.get("classes"):
            raise ConfigError(
                f"'{name}' was encoded by a model of other classes: say by --classes what its noise "
                "becomes here"
            )
        labels = found.labels[:n].tolist()
    prompts = found.about.get("prompts") if pipeline.empty is not None else None
    return Begin(
        n, labels, prompts[:n] if prompts else None, noise=found.noise[:n], originals=found.images[:n]
    )  # fmt: skip
