"""Draw samples from a teacher, a student or a published model, and write them as pictures."""

from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from halfstep import files
from halfstep.batch import batches, Cond
from halfstep.config import JsonObject
from halfstep.config.fields import POSITIONAL
from halfstep.config.validate import Count, CountOrNone, Place, Share, Validated
from halfstep.division import Division
from halfstep.errors import ConfigError, NonFinite
from halfstep.identity import digest_of, sha256_of
from halfstep.pipeline import Pipeline
from halfstep.pipeline.conditioning import null_condition
from halfstep.progress import expected, Progress, SILENT
from halfstep.report.images.panels import scatter
from halfstep.report.images.png import save_grid, save_images, save_over
from halfstep.training.distributed import Processes
from halfstep.training.divided import Divided
from halfstep.workflows.evaluation_inputs import parts_of
from halfstep.workflows.images import parse_classes, sample_kind, SampleStart, StartOptions
from halfstep.workflows.locate import chosen_pipeline, DiffusersOptions, Official
from halfstep.workflows.prompts import encoded, in_turn, PromptOptions
from halfstep.workflows.run_options import shared_options


@dataclass(frozen=True, kw_only=True)
class SampleConfig(Validated):
    """Draw images: one PNG a sample, and a grid of them; or only the grid, if --out is a PNG."""

    pipeline: Annotated[Place | None, POSITIONAL] = None
    """A teacher's or student's folder, or the run that made it. Of diffusers: a
    folder, a .safetensors file, or OWNER/NAME on the hub."""
    diffusers: DiffusersOptions = field(default_factory=DiffusersOptions)
    official: Official = field(default_factory=Official)
    out: Path
    """Folder for the images, or a .png for a grid of them."""
    n: Count | None = None
    """Number of samples; 16 by default, or all of --noise."""
    first: CountOrNone = 0
    """Number of the first sample: sample k of a seed is always the same."""
    seed: int = 0
    """Seed of the noise."""
    steps: int | None = None
    """Sampler steps; a student's own by default, a published model's as published, else 64."""
    sampler: str | None = None
    """ddim, heun, dpmpp-2m, ancestral, stochastic, dpmpp-3s, dpm-fast, euler-maruyama, or diffusers:NAME
    for a scheduler of diffusers. By default that of the student or published model, else ddim."""
    variance: Share = 0.0
    """Variance of the ancestral sampler: 0 is the small, 1 the large."""
    labels: str = ""
    """Labels of the samples in turn, such as 207,360; all classes by default."""
    per_class: CountOrNone = 0
    """Samples of each class, side by side, instead of --n."""
    start: StartOptions = field(default_factory=StartOptions)
    texts: PromptOptions = field(default_factory=PromptOptions)
    guidance_scale: float = 1.0
    """Guidance scale, 1 is off: the 1 + s of the official U-ViT's s."""
    size: tuple[Count, Count] | None = None
    """Height and width in pixels, if not those of the training."""
    batch_size: CountOrNone = 0
    """Images at a time; 0 is 256, and 8 where there is a codec."""
    npz: bool = False
    """Also write samples.npz: float32 [n, ...], images in [-1, 1]."""
    device: str = "auto"
    """auto, or one by name."""
    net: str | None = None
    """package.module:function, if the network is one of your own."""


@dataclass(frozen=True, eq=False)
class Sampled:
    """Samples that were drawn and written.

    samples  float32 [n, ...], images in [-1, 1]; of several processes the first has them
    images   one PNG a sample; empty if only a grid was written, or samples are no images
    grid     the PNG with all samples; None if samples cannot be shown
    npz      the file of numbers, if asked for
    """

    samples: Tensor
    images: tuple[Path, ...]
    grid: Path | None
    npz: Path | None


@dataclass(frozen=True, eq=False)
class SampleJob:
    """Pipeline and inputs of the samples, read and checked; nothing is drawn yet.

    start  images or noise that sampling starts from
    steps  sampler steps of a sample
    prompts, negative_prompts  conditions of the texts; of several processes the first has them
    """

    pipeline: Pipeline
    config: SampleConfig
    processes: Processes
    start: SampleStart
    steps: int
    labels: list[int] | None
    prompts: Cond | None
    negative_prompts: Cond | None

    def run(self, progress: Progress = SILENT) -> Sampled:
        """Draw the samples, divided among the processes, and write them; `NonFinite` if sampling diverges."""
        division, samples = Divided(self.processes), list[Tensor]()

        def drawn() -> Sampled:
            samples.append(self._drawn(division, progress))
            return replace(self._write(samples[0]), samples=samples[0][:0].clone())

        with self.processes.together():
            sampled = division.lead(drawn, self)
        return replace(sampled, samples=samples[0]) if samples else sampled

    def _drawn(self, division: Division, progress: Progress) -> Tensor:
        parts = batches(range(self.start.n), _batch(self.config, self.pipeline))
        progress = expected(progress, self.steps * len(parts))
        texts = (
            (part, _rows(self.prompts, part), _rows(self.negative_prompts, part)) for part in parts
        )
        samples = torch.cat(list(division.map(self._batch, texts, progress)))
        if not bool(samples.isfinite().all()):
            raise NonFinite(
                "some of the samples are nan or infinite: sampling has diverged; write another "
                "--guidance-scale, --steps or --sampler"
            )
        return samples

    def _batch(self, texts: tuple[range, Cond | None, Cond | None], progress: Progress) -> Tensor:
        """One batch of samples, with the conditions of its texts."""
        (part, prompts, negative), config, start = texts, self.config, self.start
        rows = slice(part.start, part.stop)
        images, mask, noise = start.images, start.mask, start.noise
        return self.pipeline.sample(
            len(part), seed=config.seed, steps=config.steps, sampler=config.sampler,
            labels=None if self.labels is None else self.labels[rows],
            prompts=prompts, negative_prompts=negative,
            guidance_scale=config.guidance_scale, variance=config.variance, batch=len(part),
            images=None if images is None else images[rows], strength=start.strength, mask=mask,
            noise=None if noise is None else noise[rows], first=config.first + part.start,
            progress=progress,
        )  # fmt: skip

    def _write(self, samples: Tensor) -> Sampled:
        config, out, kind = self.config, self.config.out, sample_kind(self.pipeline)
        sheet = _is_sheet(out)
        folder = files.make_folder(out.parent if sheet else out)
        grid, npz = out if sheet else folder / "grid.png", folder / "samples.npz"
        images, originals = list[Path](), self.start.originals
        if kind == "images":
            if not sheet:
                images = save_images(samples, folder, first=config.first)
            columns, scale = config.per_class or None, max(1, min(4, 128 // samples.shape[-1]))
            if originals is not None and originals.shape == samples.shape:
                save_over(originals, samples, grid, columns=columns, scale=scale)
            else:
                save_grid(samples, grid, columns=columns, scale=scale)
        elif kind:
            scatter(grid, [(f"{len(samples):,} samples", samples)])
        if config.npz:
            with files.replacing(npz) as (part,), part.open("wb") as file:
                np.savez(file, images=samples.numpy())
        return Sampled(samples, tuple(images), grid if kind else None, npz if config.npz else None)


def sample(config: SampleConfig, *, progress: Progress = SILENT) -> Sampled:
    """Draw samples and write them into a folder, or as one grid where `out` is a .png.

    Args:
        config: the options of `halfstep sample`.
        progress: advances with every step of every batch.

    Raises:
        ConfigError: a model and inputs that do not go together, or a place that cannot be written.
        CheckpointError: a damaged model.
    """
    return prepare_sample(config, progress=progress).run(progress)


def prepare_sample(config: SampleConfig, *, progress: Progress = SILENT) -> SampleJob:
    """Read and check everything that `sample` needs, before the first network call.

    Under torchrun the processes divide the samples; the first writes them.
    """
    out, processes = config.out, Processes(config.device)
    with processes.together():
        files.check_writable(out.parent if _is_sheet(out) else out, "choose another --out")
        pipeline = chosen_pipeline(
            "halfstep sample needs the folder of a pipeline", config.pipeline, config.official,
            steps=config.steps, net=config.net, diffusers=config.diffusers, size=config.size,
        )  # fmt: skip
        if config.size is not None and config.size != pipeline.pixels:
            pipeline = pipeline.at_size(*config.size)
        _check_out(pipeline, config)
        job = _job(pipeline.to(processes.device), config, processes, progress)
        if processes.world > 1:
            processes.compare(_identity(job))
    return job


def _identity(job: SampleJob) -> JsonObject:
    """What all processes must have in common."""
    start = job.start
    tensors = {"images": start.images, "mask": start.mask, "noise": start.noise}
    given = {name: sha256_of((x,)) for name, x in tensors.items() if x is not None}
    # Places are compared by what is in them.
    options = shared_options(job.config)
    options = {name: v for name, v in options.items() if name not in ("pipeline", "images")}
    texts = {"prompt": job.config.texts.texts, "negative_prompt": job.config.texts.negative}
    weights = digest_of(job.pipeline.denoiser)[:16]
    return {**options, **texts, "weights": weights, **given, "labels": job.labels}


def _check_out(pipeline: Pipeline, config: SampleConfig) -> None:
    out, sheet = config.out, _is_sheet(config.out)
    if not sample_kind(pipeline) and (sheet or not config.npz):
        raise ConfigError(
            f"samples of shape {list(pipeline.shape)} are no picture: give a folder as --out, and add "
            "--npz to write them as numbers"
        )
    if not sheet and out.exists() and not out.is_dir():
        raise ConfigError(f"'{out}' is a file and no picture: give a folder, or a .png, as --out")
    if sheet and config.npz:
        raise ConfigError("numbers need a folder: give one as --out, or leave --npz out")


def _job(
    pipeline: Pipeline, config: SampleConfig, processes: Processes, progress: Progress
) -> SampleJob:
    times = pipeline.grid(config.steps, config.sampler or pipeline.sampler)
    classes = parse_classes(config.labels)
    texts = config.texts
    texts.refuse_labels(classes)
    count = len(classes or texts.texts or pipeline.class_names)
    if config.per_class and not count:
        raise ConfigError("--per-class needs --labels or --prompt: write --n instead")
    pipeline.check_counts(
        config.per_class * count or config.n or 0, seed=config.seed, batch=_batch(config, pipeline),
        first=config.first, variance=config.variance,
    )  # fmt: skip
    start = config.start.load(
        pipeline, n=config.per_class * count or config.n, first=config.first,
        classed=bool(classes or config.per_class), guidance_scale=config.guidance_scale, progress=progress,
    )  # fmt: skip
    numbers = range(config.first, config.first + start.n)
    chosen = [k // config.per_class if config.per_class else k for k in numbers]
    if config.per_class and not texts.texts:
        classes = classes or list(range(count))
    labels = [classes[k % count] for k in chosen] if classes else start.labels
    given = in_turn(texts.texts, chosen) or start.prompts, in_turn(texts.negative, chosen)
    division, conditions = Divided(processes), list[Cond | None]()

    def encode() -> None:
        conditions.extend(encoded(pipeline, each, division) for each in given)
        # Refused before sampling:
        null_condition(pipeline, start.n, config.guidance_scale, conditions[1])

    with nullcontext() if pipeline.texts is None else pipeline.texts.on(processes.device):
        division.lead(encode, *parts_of([pipeline]))
    prompts, negative = conditions or (None, None)
    pipeline = replace(pipeline, texts=None)  # its encoder leaves memory
    steps = len(start.grid(times, student=bool(pipeline.times))) - 1
    return SampleJob(pipeline, config, processes, start, steps, labels, prompts, negative)


def _rows(cond: Cond | None, part: range) -> Cond | None:
    return None if cond is None else cond[part.start : part.stop]


def _batch(config: SampleConfig, pipeline: Pipeline) -> int:
    return config.batch_size or (8 if pipeline.codec is not None else 256)


def _is_sheet(out: Path) -> bool:
    """Whether all samples are written as one picture."""
    return out.suffix.lower() == ".png"
