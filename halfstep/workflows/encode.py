"""Encode images as noise, from which a model makes them again."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor

from halfstep import files
from halfstep.batch import Cond
from halfstep.config.fields import POSITIONAL
from halfstep.config.validate import Count, CountOrNone, Place, Validated
from halfstep.errors import ConfigError, DataError
from halfstep.identity import digest_of
from halfstep.pipeline import Pipeline
from halfstep.pipeline.conditioning import null_condition
from halfstep.progress import Progress, SILENT
from halfstep.report.images.png import save_over
from halfstep.training.distributed import pick_device
from halfstep.workflows.images import load_images, parse_classes, sample_kind
from halfstep.workflows.locate import chosen_pipeline, DiffusersOptions, Official
from halfstep.workflows.noise_file import NoiseFile, stem
from halfstep.workflows.prompts import encoded, in_turn, PromptOptions


@dataclass(frozen=True, kw_only=True)
class EncodeConfig(Validated):
    """Encode images as noise; `halfstep sample --noise` makes the images again."""

    pipeline: Annotated[Place | None, POSITIONAL] = None
    """A teacher's folder, an encoder's (halfstep distill encoder), or the run that made it. Of diffusers: a
    folder, a .safetensors file, or OWNER/NAME on the hub."""
    diffusers: DiffusersOptions = field(default_factory=DiffusersOptions)
    official: Official = field(default_factory=Official)
    images: str
    """A picture, a folder of pictures, or data by name as for --data, but no latents."""
    out: Path
    """NAME.safetensors: the noise.  NAME.json describes its origin, NAME.png shows it."""
    n: Count = 16
    """Number of images, at most."""
    first: CountOrNone = 0
    """Number of the first image."""
    steps: int | None = None
    """Sampler steps; an encoder's own by default, else 64."""
    labels: str = ""
    """Labels of the images in turn, such as 3,8; by default those of the data."""
    texts: PromptOptions = field(default_factory=PromptOptions)
    guidance_scale: float = 1.0
    """Guidance scale, 1 is off."""
    batch_size: CountOrNone = 0
    """Images at a time; 0 is 256, and 8 where there is a codec."""
    device: str = "auto"
    """auto, or one by name."""
    net: str | None = None
    """package.module:function, if the network is one of your own."""


@dataclass(frozen=True, eq=False)
class EncodedImages:
    """Noise that was written.

    path     NAME.safetensors, with NAME.json beside it
    noise    float32 [n, ...]
    picture  NAME.png, the images above their noise; None if these cannot be shown so
    """

    path: Path
    noise: Tensor
    picture: Path | None


@dataclass(frozen=True, eq=False)
class EncodeJob:
    """Images and model, read and checked; nothing is encoded yet.

    steps  sampler steps
    """

    pipeline: Pipeline
    config: EncodeConfig
    images: Tensor
    labels: list[int] | None
    steps: int
    texts: Cond | None
    negative_texts: Cond | None

    @property
    def prompts(self) -> list[str]:
        """One text an image, or none."""
        return in_turn(self.config.texts.texts, range(len(self.images))) or []

    def run(self, progress: Progress = SILENT) -> EncodedImages:
        """Encode and write; `DataError` where sampling diverges."""
        config = self.config
        batch = config.batch_size or (8 if self.pipeline.codec is not None else 256)
        noise = self.pipeline.encode(
            self.images, steps=config.steps, labels=self.labels, guidance_scale=config.guidance_scale,
            batch=batch, prompts=self.texts, progress=progress,
            negative_prompts=self.negative_texts,
        )  # fmt: skip
        if not bool(noise.isfinite().all()):
            raise DataError("some of the noise is nan or infinite: sampling has diverged")
        about = {
            "pipeline": str(config.pipeline or config.official.model),
            "weights": digest_of(self.pipeline.denoiser)[:16],
            "images": config.images,
            "first": config.first,
            "steps": self.steps,
            "guidance_scale": config.guidance_scale,
            "class_names": list(self.pipeline.class_names),
            "prompts": self.prompts,
        }
        labels = None if self.labels is None else torch.tensor(self.labels)
        NoiseFile(noise, self.images, labels, about).save(config.out)
        picture = None
        if self.images.shape == noise.shape and sample_kind(self.pipeline) == "images":
            picture = config.out.with_suffix(".png")
            save_over(self.images, noise / 3, picture)  # nearly all values are within 3
        return EncodedImages(config.out, noise, picture)


def encode(config: EncodeConfig, *, progress: Progress = SILENT) -> EncodedImages:
    """Encode images as noise, and write it as NAME.safetensors; `sample` turns it back.

    Args:
        config: the options of `halfstep encode`.
        progress: advances with every step of every batch.

    Raises:
        ConfigError: a model and images that do not go together, or a place that cannot be written.
        CheckpointError: a damaged model.
    """
    return prepare_encode(config, progress=progress).run(progress)


def prepare_encode(config: EncodeConfig, *, progress: Progress = SILENT) -> EncodeJob:
    """Read and check everything that `encode` needs, before the first network call."""
    stem(config.out)  # refuses another ending
    files.check_writable(config.out.parent, "choose another --out")
    pipeline = chosen_pipeline(
        "halfstep encode needs the folder of a pipeline", config.pipeline, config.official,
        steps=config.steps, net=config.net, diffusers=config.diffusers,
    )  # fmt: skip
    images, labels = _images(config, pipeline, progress)
    texts, negative = (
        encoded(pipeline, in_turn(given, range(len(images))))
        for given in (config.texts.texts, config.texts.negative)
    )
    null_condition(
        pipeline, len(images), config.guidance_scale, negative
    )  # refused before encoding
    pipeline = replace(pipeline, texts=None)  # its encoder leaves memory
    counts = list(pipeline.step_counts) or [pipeline.steps]
    steps = config.steps or min(counts)
    return EncodeJob(
        pipeline.to(pick_device(config.device)), config, images, labels, steps, texts, negative
    )


def _images(
    config: EncodeConfig, pipeline: Pipeline, progress: Progress
) -> tuple[Tensor, list[int] | None]:
    """The images, and their labels for the model."""
    classes = parse_classes(config.labels)
    config.texts.refuse_labels(classes)
    source = load_images(config.images, pipeline, labelled=not classes, progress=progress)
    numbers = list(range(config.first, min(config.first + config.n, len(source))))
    if not numbers:
        raise ConfigError(
            f"'{config.images}' ends before image {config.first}: it has {len(source):,}, from 0 on"
        )
    images, labels = source.rows(numbers)
    if classes:
        labels = [classes[k % len(classes)] for k in range(len(numbers))]
    if pipeline.class_names and labels is None:
        none = "" if pipeline.null is None else f" ({pipeline.null} says none)"
        raise ConfigError(
            f"'{config.images}' does not say of which classes its images are, and this model reads them: "
            f"write --labels and their numbers{none}"
        )
    return images, labels
