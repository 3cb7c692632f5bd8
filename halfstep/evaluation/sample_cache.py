"""Samples of a teacher, kept on disk: at 128 network calls each, nobody wants to draw them twice."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn, Tensor

from halfstep import files, storage
from halfstep.batch import batches
from halfstep.errors import CheckpointError, ConfigError
from halfstep.evaluation.sample_sets import SampleScorer
from halfstep.identity import digest_of, sha256_of
from halfstep.pipeline import Pipeline
from halfstep.progress import expected, Progress, SILENT
from halfstep.version import __version__

CHUNK = 1024
"""Samples that are drawn, and kept, at a time."""
SMALL = 2**14
"""Bytes of an image up to which it is kept beside its features: 32 x 32 in colour."""


@dataclass(frozen=True)
class Chunk:
    """Samples from one number to another; no images where nobody wants them."""

    images: Tensor | None
    features: Tensor


@dataclass(frozen=True)
class Samples:
    """Samples of one way to sample, some at a time, from the cache where they are in it.

    load      the pipeline, asked for only when something must be drawn
    who       `identity` of the pipeline; None keeps nothing
    steps     of its own sampler, or of `sampler`
    scorer     features, noise, guidance scale
    images    whether they are wanted beside the features: those above `SMALL` are drawn again each time
    cache     the folder; None keeps nothing

    An entry belongs to all that decides what is in it: weights and description of the pipeline, features,
    scale, seed, sampler, steps, labels in turn, this version of halfstep.  One that is damaged is drawn
    again; a cache that cannot be written is done without.
    """

    load: Callable[[], Pipeline]
    who: str | None
    sampler: str
    steps: int
    scorer: SampleScorer
    images: bool = True
    cache: Path | None = None

    def chunk(self, rows: range, *, progress: Progress = SILENT) -> Chunk:
        """These samples."""
        progress = expected(progress, self.work([rows]))
        found = self._kept(rows)
        if found is None:
            found = self._drawn(rows, progress)
            self._keep(rows, found)
        else:
            progress.advance(self.work([rows]))
        return found

    def features(self, n: int, *, progress: Progress = SILENT) -> Tensor:
        """Of the first n, float64 [n, D]."""
        parts = chunks(n)
        progress = expected(progress, self.work(parts))
        return torch.cat([self.chunk(rows, progress=progress).features for rows in parts])

    def work(self, parts: Sequence[range]) -> int:
        """The steps of these chunks, those in the cache as if they were drawn."""
        return self.steps * sum(len(batches(rows, self.scorer.batch)) for rows in parts)

    def _drawn(self, rows: range, progress: Progress) -> Chunk:
        way = self.load(), self.sampler, self.steps
        images = self.scorer.draw(*way, rows, progress=progress)
        features = self.scorer.features(images)
        return Chunk(images if self.images else None, features)

    def _about(self, rows: range) -> dict[str, object] | None:
        scorer = self.scorer
        if None in (self.who, self.cache) or not scorer.features.digest or scorer.captions:
            return None
        return {
            "pipeline": self.who,
            "features": scorer.features.digest,
            "preprocessing": scorer.features.preprocessing,
            "guidance_scale": float(scorer.guidance_scale),
            "seed": scorer.seed,
            "sampler": self.sampler,
            "steps": self.steps,
            "labels": "in turn",
            "rows": [rows.start, rows.stop],
            "images": self.images,
            "halfstep": __version__,
        }

    def _stem(self, about: dict[str, object]) -> Path:
        assert self.cache is not None
        key = sha256_of((repr(sorted(about.items())),))
        return self.cache / f"samples-{key[:32]}"

    def _kept(self, rows: range) -> Chunk | None:
        if (about := self._about(rows)) is None:
            return None
        with suppress(CheckpointError):  # none yet, or damaged
            tensors, known = storage.load(self._stem(about))
            if known == about:
                return Chunk(tensors.get("images"), tensors["features"].double())
        return None

    def _keep(self, rows: range, found: Chunk) -> None:
        about = self._about(rows)
        if about is None or (found.images is not None and found.images[0].nbytes > SMALL):
            return
        short = found.features.float()  # as nearly every network computes
        exact = torch.equal(short.double(), found.features)
        tensors = {"features": short if exact else found.features}
        if found.images is not None:
            tensors["images"] = found.images
        stem = self._stem(about)
        with suppress(CheckpointError, OSError):
            files.make_folder(stem.parent)
            storage.save(stem, tensors, about)


def chunks(n: int) -> list[range]:
    """The numbers of n samples, some at a time, never one alone: pairs are compared two at least."""
    lows = range(0, max(n - 1, 1), CHUNK)
    return [range(low, n if low == lows[-1] else low + CHUNK) for low in lows]


def identity(pipeline: Pipeline) -> str | None:
    """sha256 of all that decides a pipeline's samples; None where that cannot be said."""
    try:
        about = pipeline.describe()
    except ConfigError:  # a network that nobody could build again
        return None
    parts = [repr(about), digest_of(pipeline.denoiser)]
    parts.append(next(pipeline.denoiser.parameters(), torch.empty(0)).device.type)
    if pipeline.codec is not None:
        if not isinstance(pipeline.codec, nn.Module):
            return None
        parts.append(digest_of(pipeline.codec))
    if pipeline.empty is not None:
        parts.append(sha256_of((pipeline.empty,)))
    return sha256_of(parts)
