"""The images, the mask and the noise that `encode` and `sample` start from."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from halfstep.data import Dataset, is_streamed, Latents, load
from halfstep.data.latents.image_stream import Images
from halfstep.data.sources.decoding import read
from halfstep.data.sources.places import SHARDS, TABLES
from halfstep.diffusion.time_grids import Times
from halfstep.errors import ConfigError, DataError
from halfstep.pipeline import Pipeline
from halfstep.pipeline.image_inputs import ImageStart
from halfstep.progress import Progress, SILENT
from halfstep.workflows.noise_file import NoiseFile

GRAY = (48, 207)
"""Pixels between these are neither black nor white."""


@dataclass(frozen=True, eq=False)
class ImageSource:
    """The data that images are taken from, for a model.

    labels  the model's own label of each, or None where it has no classes or the data has no labels
    """

    data: Dataset
    labels: Tensor | None

    def __len__(self) -> int:
        return len(self.data)

    def rows(self, numbers: Sequence[int]) -> tuple[Tensor, list[int] | None]:
        """The images of these numbers, repeated if there are fewer, and their labels."""
        rows = torch.tensor(numbers, dtype=torch.int64) % len(self)
        return self.data.batch(rows).x0, None if self.labels is None else self.labels[rows].tolist()


def load_images(
    spec: str, pipeline: Pipeline, *, labelled: bool, progress: Progress = SILENT
) -> ImageSource:
    """The images of a picture, a folder or data by name, in the size that the model makes.

    labelled  with the model's own label of each; refused where a class is unknown to the model
    """
    place, shape = Path(spec).expanduser(), sample_shape(pipeline)
    if is_picture(place):
        data: Dataset | Latents = Dataset(read_picture(place, shape[-1], shape[0])[None])
    else:
        sized = len(shape) == 3 and (is_streamed(spec) or spec.startswith("fashion-mnist"))
        size, channels = (shape[-1], shape[0]) if sized else (None, None)
        data = load(spec, size=size, channels=channels, progress=progress)
    if isinstance(data, Latents):
        raise ConfigError(f"'{spec}' holds latents: give the images that they were made of")
    if tuple(data.shape) != shape:
        raise ConfigError(
            f"'{spec}' holds samples of shape {list(data.shape)} and this model makes {list(shape)}: give "
            "such, or a folder of images, which are resized"
        )
    return ImageSource(
        data, model_labels(spec, data, pipeline, by_number=False) if labelled else None
    )


def sample_shape(pipeline: Pipeline) -> tuple[int, ...]:
    """The shape of one sample as it is written; with a codec, of a decoded image."""
    return pipeline.shape if pipeline.codec is None else tuple(pipeline.sample(0).shape[1:])


def sample_kind(pipeline: Pipeline) -> Literal["images", "points", ""]:
    """Whether samples are shown as images, as points, or not at all."""
    if pipeline.codec is not None:
        return "images"
    if len(pipeline.shape) == 3 and pipeline.shape[0] in (1, 3):
        return "images"
    return "points" if pipeline.shape == (2,) else ""


def parse_classes(text: str) -> list[int]:
    """207,360 as [207, 360]."""
    try:
        return [int(word) for word in text.replace(",", " ").split()]
    except ValueError:
        raise ConfigError(
            f"--labels takes numbers of classes, got '{text}': write for example --labels 207,360"
        ) from None


def load_mask(path: Path, pipeline: Pipeline, images: str) -> Tensor:
    """bool [1, 1, H, W], True where the picture is white; cropped and resized as the images are.

    images  the name or place of the images; the mask of one picture must have its proportions
    """
    shape = sample_shape(pipeline)
    if len(shape) != 3:
        raise ConfigError(
            f"samples of shape {list(shape)} have no pixels to repaint: leave --mask out"
        )
    mask = read_picture(path, shape[-1], 1, mask=True)[None] > 127
    _refuse_mask(path, Path(images).expanduser())
    return mask


def _refuse_mask(path: Path, images: Path) -> None:
    """Refuse a mask that is not black and white, or would be cropped elsewhere than its picture."""
    with Image.open(path) as opened:
        gray, (width, height) = np.asarray(opened.convert("L")), opened.size
    if ((gray > GRAY[0]) & (gray < GRAY[1])).mean() > 0.25:  # some at edges is smoothing
        raise DataError(
            f"{path} is gray, and a mask is black and white: save it white where pixels are repainted, "
            "black elsewhere"
        )
    expected, images_are = (1, 1), "images are cropped to squares"
    if is_picture(images):
        with Image.open(images) as opened:
            expected = opened.size
        images_are = f"its picture {expected[0]} x {expected[1]}"
    if abs(width * expected[1] - height * expected[0]) > max(width * expected[1], 1) / 50:
        raise DataError(
            f"{path} is {width} x {height} and {images_are}: give a mask of the same proportions, so that "
            "both are cropped alike"
        )


def is_picture(place: Path) -> bool:
    """Whether this is one picture's file."""
    return place.is_file() and place.suffix.lower() not in (".npy", ".npz", *SHARDS, *TABLES)


def read_picture(path: Path, size: int, channels: int, *, mask: bool = False) -> Tensor:
    """The image in one file, uint8 [C, size, size]."""
    if not path.is_file():
        raise DataError(f"there is no file {path}: give a picture")
    image = read(path, size, channels)
    if isinstance(image, str):
        raise DataError(f"{path} cannot be read as an image ({image}): give another")
    if mask and _has_transparency(path):
        raise DataError(
            f"{path} has transparent parts, and a mask is black and white: save it without, white where "
            "pixels are repainted"
        )
    return torch.from_numpy(np.array(image))  # a copy: Pillow's own is read-only


def _has_transparency(path: Path) -> bool:
    """Whether any part of the picture is transparent."""
    with Image.open(path) as opened:
        least, _ = opened.convert("RGBA").getchannel("A").getextrema()
    return least != 255


def model_labels(
    spec: str, data: Dataset | Images, pipeline: Pipeline, *, by_number: bool = True
) -> Tensor | None:
    """The model's labels of the images: by class name if the data has names, else by number.

    by_number  also of data with names, if the model has none of them
    """
    if data.labels is None or not pipeline.class_names:
        return None
    names, class_names = data.names, pipeline.class_names
    instead = "say by --labels which they are"
    if by_number:
        instead = "name the sub-folders as the model's classes"
    used = sorted(set(data.labels.tolist()))
    if not names or (by_number and not {names[label] for label in used} & set(class_names)):
        if (count := len(names) or max(used, default=0) + 1) > len(class_names):
            raise ConfigError(
                f"'{spec}' has {count} classes and this model {len(class_names)}: {instead}"
            )
        return data.labels
    if strange := [names[label] for label in used if names[label] not in class_names]:
        listed = f"{', '.join(class_names[:12])}{', ...' if len(class_names) > 12 else ''}"
        raise ConfigError(
            f"'{spec}' has images of '{strange[0]}', which is no class of this model ({listed}): "
            f"{instead}"
        )
    return torch.tensor([class_names.index(n) if n in class_names else -1 for n in names])[
        data.labels
    ]


@dataclass(frozen=True, kw_only=True)
class StartOptions:
    """The images or the noise that samples start from, instead of a seed's noise."""

    noise: Path | None = None
    """Noise that halfstep encode wrote, decoded with the classes it was encoded with, or --labels."""
    images: str | None = None
    """A picture, a folder or data: start from these images (--strength), or repaint a part (--mask)."""
    strength: float | None = None
    """Time at which sampling starts from its image, in (0, 1]: 0.3 changes little, 1 all of it."""
    mask: Path | None = None
    """A picture that is white where the images are repainted; pixels at black are kept, to the bit."""

    def load(
        self, pipeline: Pipeline, *, n: int | None, first: int, classed: bool, guidance_scale: float,
        progress: Progress = SILENT,
    ) -> "SampleStart":  # fmt: skip
        """Read the noise, or the images and the mask.

        n        number of samples, or None for the default
        first    number of the first image
        classed  the classes are chosen, so that those of the data do not count
        """
        if self.noise is not None:
            if self.images or self.strength is not None or self.mask or first:
                raise ConfigError(
                    "--noise is what samples begin with: leave --images, --strength, --mask and --first "
                    "out"
                )
            return _from_noise(self.noise, pipeline, n, classed, guidance_scale, progress)
        n = 16 if n is None else n
        if self.images is None:
            if self.strength is not None or self.mask:
                raise ConfigError("--strength and --mask are about images: give them as --images")
            return SampleStart(n)
        if self.strength is None and self.mask is None:
            raise ConfigError(
                "--images alone does not say what becomes of them: write --strength (0.3 changes little, 1 "
                "all), or --mask and a picture that is white where they are repainted"
            )
        strength = 1.0 if self.strength is None else self.strength
        mask = None if self.mask is None else load_mask(self.mask, pipeline, self.images)
        source = load_images(self.images, pipeline, labelled=not classed, progress=progress)
        images, labels = source.rows(range(first, first + n))
        return SampleStart(
            n, images=images, labels=labels, strength=strength, mask=mask, originals=images
        )


@dataclass(frozen=True, eq=False)
class SampleStart:
    """The arguments of `Pipeline.sample` that samples start from.

    originals  images that are shown above the samples
    """

    n: int
    labels: list[int] | None = None
    prompts: list[str] | None = None
    images: Tensor | None = None
    strength: float = 1.0
    mask: Tensor | None = None
    noise: Tensor | None = None
    originals: Tensor | None = None

    def grid(self, times: Times, *, student: bool) -> Times:
        """The part of the grid that is sampled."""
        return ImageStart(strength=self.strength).grid(times, student=student)


def _from_noise(
    path: Path, pipeline: Pipeline, n: int | None, classed: bool, guidance_scale: float,
    progress: Progress,
) -> SampleStart:  # fmt: skip
    file = NoiseFile.load(path)
    scale = file.about.get("guidance_scale", 1.0)
    if scale != guidance_scale:
        progress.note(
            f"'{path}' was encoded at guidance {scale:g} and is decoded at {guidance_scale:g}: "
            f"--guidance-scale {scale:g} gives the images back"
        )
    n = len(file.noise) if n is None else n
    if n > len(file.noise):
        raise ConfigError(
            f"'{path}' holds {len(file.noise)} of noise, asked for {n}: leave --n out"
        )
    labels = None
    if not classed and pipeline.class_names and file.labels is not None:
        if list(pipeline.class_names) != file.about.get("class_names"):
            raise ConfigError(
                f"'{path}' was encoded by a model of other classes: say by --labels what its noise "
                "becomes here"
            )
        labels = file.labels[:n].tolist()
    prompts = file.about.get("prompts") if pipeline.empty is not None else None
    return SampleStart(
        n, labels, prompts[:n] if prompts else None, noise=file.noise[:n], originals=file.images[:n]
    )  # fmt: skip
