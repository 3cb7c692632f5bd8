"""The latents of the images that a teacher of latents is distilled on, encoded once into the run's folder."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from halfstep.batch import Batch
from halfstep.data import Dataset, is_streamed, Latents, load
from halfstep.data.latents.captions import Captions, captions_of
from halfstep.data.latents.dataset import is_latents, open_latents, read_about
from halfstep.data.latents.encoding import Layout, write_latents
from halfstep.data.latents.image_stream import Images, ImagesInMemory, ImageStream, stream
from halfstep.division import ALONE, Division
from halfstep.errors import ConfigError
from halfstep.models.codec import Codec, on_device
from halfstep.pipeline import Pipeline
from halfstep.progress import Progress, SILENT
from halfstep.training.distributed import Processes
from halfstep.training.divided import Divided
from halfstep.training.run_folder import RunFolder
from halfstep.training.run_repair import LATENTS, refuse_foreign
from halfstep.workflows.images import model_labels, sample_shape
from halfstep.workflows.latents import opened_on_first
from halfstep.workflows.options import DataOptions, EncodingOptions
from halfstep.workflows.prompts import read_prompts

FEW = 8
"""Images that a dry run encodes."""


@dataclass(frozen=True, eq=False)
class TeacherLatents:
    """Images that become latents of a teacher's own codec, with captions by its own text encoders.

    folder    of the latents, in the run's
    captions  of each image; None for the empty text, or for a teacher without texts
    source    where the captions come from, in words
    """

    teacher: Pipeline
    codec: Codec
    images: Images
    folder: Path
    captions: Sequence[tuple[str, ...]] | None
    source: str
    flip: bool
    batch: int

    def __str__(self) -> str:
        texts = f", with {self.source}" if self.source else ""
        return f"{len(self.images):,} images, encoded once into {self.folder}{texts}"

    @property
    def complete(self) -> bool:
        """Whether all of them were encoded before."""
        return is_latents(self.folder) and read_about(self.folder)["complete"]

    def encode(self, device: str, *, progress: Progress = SILENT) -> Latents:
        """Encode the images that are not encoded yet, divided among the processes; free the text encoders.

        The first process alone compares checksums.
        """
        processes = Processes(device)
        with processes.together():
            self._write(self.folder, processes.device, Divided(processes), progress)
            return opened_on_first(self.folder, None, processes)

    @contextmanager
    def rehearsed(self, device: str) -> Iterator[Latents]:
        """All latents if they are encoded; else a few in a temporary folder stand for all."""
        if self.complete:
            yield open_latents(self.folder)
            return
        some = replace(
            self, images=_first(self.images), captions=self.captions and self.captions[:FEW]
        )
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            some._write(Path(folder), Processes(device).device, ALONE, SILENT)
            few = open_latents(folder)
            yield _Few(**vars(few), total=len(self.images))

    def _write(
        self, folder: Path, device: torch.device, division: Division, progress: Progress
    ) -> None:
        texts, captions = self.teacher.texts, None
        if self.captions is not None and texts is not None:
            captions = Captions(texts, self.captions, texts.digest())
        with on_device(self.codec, device):
            write_latents(
                self.images, self.codec, folder, layout=Layout(mirror=self.flip), captions=captions,
                batch=self.batch, device=device, division=division, progress=progress,
            )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Few(Latents):
    """A few latents that stand for all in a dry run."""

    total: int = 0

    def __len__(self) -> int:
        return self.total

    def batch(self, rows: Tensor) -> Batch:
        return super().batch(rows % super().__len__())


def teacher_latents(
    teacher: Pipeline,
    dataset: DataOptions,
    out: Path | str,
    options: EncodingOptions | None = None,
    *,
    progress: Progress = SILENT,
) -> TeacherLatents | None:
    """The images of the data as latents of this teacher, checked; nothing is encoded yet.

    None for a teacher of pixels, and for data that are latents.

    out       folder of the run, which keeps them in `latents`
    progress  advances while shards are indexed, and images looked through for --skip-bad

    `ConfigError` for images, captions or classes that do not fit the teacher, and for another folder.
    """
    options, out = options or EncodingOptions(), Path(out)
    images = None if teacher.codec is None else _images(teacher, dataset, out / LATENTS, progress)
    if images is None or teacher.codec is None:
        if options.prompts is not None:
            raise ConfigError(
                "--prompts is for images that become latents of a teacher that reads texts: leave it out"
            )
        return None
    refuse_foreign(out)
    if RunFolder(out).exists and not RunFolder(out).about["command"].startswith("distill"):
        raise ConfigError(f"'{out}' holds another run: choose another --out")
    if teacher.class_names and images.labels is None:
        raise ConfigError(
            f"the teacher has {len(teacher.class_names)} classes and the images have none: put them into a "
            "sub-folder for each class"
        )
    captions, source = _captions(teacher, images, options)
    images = _relabelled(images, model_labels(dataset.data, images, teacher))
    return TeacherLatents(
        teacher, teacher.codec, images, out / LATENTS, captions, source, dataset.flip,
        options.encode_batch,
    )  # fmt: skip


def _images(
    teacher: Pipeline, dataset: DataOptions, folder: Path, progress: Progress
) -> Images | None:
    """The images in the size that the teacher makes; None for latents.

    folder  of the latents, which may have a list of images that were skipped
    """
    place = Path(dataset.data).expanduser()
    if is_latents(place):
        return None
    if place.is_file() and not is_streamed(dataset.data):
        array = load(dataset.data, channels=dataset.channels)
        return ImagesInMemory(array) if isinstance(array, Dataset) and array.is_images else None
    channels, height, width = sample_shape(teacher)
    if height != width or dataset.size not in (None, height):
        raise ConfigError(
            f"the teacher makes images of {height} x {width} pixels, and data are read as squares: give "
            f"{'another --size' if height != width else f'--size {height}, or leave it out'}"
        )
    return stream(
        dataset.data, size=height, channels=dataset.channels or channels,
        skip_bad=dataset.skip_bad, listed=folder, progress=progress,
    )  # fmt: skip


def _captions(
    teacher: Pipeline, images: Images, options: EncodingOptions
) -> tuple[list[tuple[str, ...]] | None, str]:
    """The captions of each image, and where they come from in words."""
    reads = teacher.empty is not None or teacher.texts is not None
    captions = captions_of(images) if reads else None
    if options.prompts is not None and (captions or not reads):
        why = "the images have captions" if reads else "the teacher reads no texts"
        raise ConfigError(f"--prompts is for images without captions, and {why}: leave it out")
    if not reads or not (captions or options.prompts):
        return None, "the empty text" if reads else ""
    if teacher.texts is None:
        raise ConfigError("the teacher has no encoder for texts: give it as --text FOLDER")
    if options.prompts is not None:
        prompts = read_prompts("prompt", (), options.prompts)
        return [(prompts[k % len(prompts)],) for k in range(len(images))], "prompts in turn"
    return captions, "their captions"


def _relabelled(images: Images, labels: Tensor | None) -> Images:
    """The same images with the teacher's own labels."""
    if isinstance(images, ImageStream):
        return replace(images, labels=labels, names=())
    assert isinstance(images, ImagesInMemory)
    return ImagesInMemory(replace(images.data, labels=labels, names=()))


def _first(images: Images) -> Images:
    """The first few of the images."""
    if isinstance(images, ImageStream):
        return images.only(images.rows[:FEW])
    assert isinstance(images, ImagesInMemory)
    data = images.data
    labels = None if data.labels is None else data.labels[:FEW]
    return ImagesInMemory(replace(data, values=data.values[:FEW], labels=labels))
