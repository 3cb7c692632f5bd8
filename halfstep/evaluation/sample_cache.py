"""Cache of a teacher's samples on disk."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn, Tensor

from halfstep import files, storage
from halfstep.batch import batches
from halfstep.config import JsonObject
from halfstep.errors import CheckpointError, ConfigError
from halfstep.evaluation.sample_sets import SampleScorer
from halfstep.identity import digest_of, sha256_of
from halfstep.pipeline import Pipeline
from halfstep.pipeline.conditioning import digest_of_defaults
from halfstep.progress import expected, Progress, SILENT
from halfstep.version import __version__

CHUNK = 1024
"""Samples of a cache entry."""
SMALL = 2**14
"""Largest image in bytes to cache beside its features: 32 x 32 in colour."""


@dataclass(frozen=True)
class Chunk:
    """Consecutive samples: images, None if not wanted, and features."""

    images: Tensor | None
    features: Tensor


@dataclass(frozen=True)
class Samples:
    """Samples of one sampling setup, chunk by chunk, read from the cache if they are in it.

    load         loads the pipeline, called only when samples must be drawn
    fingerprint  `identity` of the pipeline; None disables the cache
    steps        steps of the sampler
    scorer       features, noise, guidance scale
    images       whether images are wanted beside the features; those above `SMALL` are never cached
    cache        the cache folder; None disables the cache

    The key of an entry contains everything that decides its content: weights and description of the
    pipeline, features, scale, seed, sampler, steps, labels, version of halfstep.  A damaged entry is drawn
    again; a cache that cannot be written is skipped.
    """

    load: Callable[[], Pipeline]
    fingerprint: str | None
    sampler: str
    steps: int
    scorer: SampleScorer
    images: bool = True
    cache: Path | None = None

    def chunk(self, rows: range, *, progress: Progress = SILENT) -> Chunk:
        """The samples of these numbers."""
        progress = expected(progress, self.work([rows]))
        chunk = self._load_chunk(rows)
        if chunk is None:
            chunk = self._draw_chunk(rows, progress)
            self._save_chunk(rows, chunk)
        else:
            progress.advance(self.work([rows]))
        return chunk

    def features(self, n: int, *, progress: Progress = SILENT) -> Tensor:
        """Features of the first n samples, float64 [n, D]."""
        parts = chunks(n)
        progress = expected(progress, self.work(parts))
        return torch.cat([self.chunk(rows, progress=progress).features for rows in parts])

    def work(self, parts: Sequence[range]) -> int:
        """Sampling steps of these chunks, counting cached ones as if they were drawn."""
        return self.steps * sum(len(batches(rows, self.scorer.batch)) for rows in parts)

    def _draw_chunk(self, rows: range, progress: Progress) -> Chunk:
        setup = self.load(), self.sampler, self.steps
        drawn = self.scorer.draw(*setup, rows, progress=progress)
        return Chunk(drawn.images if self.images else None, drawn.features)

    def _about(self, rows: range) -> JsonObject | None:
        scorer = self.scorer
        if None in (self.fingerprint, self.cache) or not scorer.features.digest or scorer.captions:
            return None
        return {
            "pipeline": self.fingerprint,
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

    def _stem(self, about: JsonObject) -> Path:
        assert self.cache is not None
        key = sha256_of((repr(sorted(about.items())),))
        return self.cache / f"samples-{key[:32]}"

    def _load_chunk(self, rows: range) -> Chunk | None:
        if (about := self._about(rows)) is None:
            return None
        with suppress(CheckpointError):  # missing or damaged
            tensors, stored = storage.load(self._stem(about))
            if stored == about:
                return Chunk(tensors.get("images"), tensors["features"].double())
        return None

    def _save_chunk(self, rows: range, chunk: Chunk) -> None:
        about = self._about(rows)
        if about is None or (chunk.images is not None and chunk.images[0].nbytes > SMALL):
            return
        single = chunk.features.float()  # nearly every network computes in it
        exact = torch.equal(single.double(), chunk.features)
        tensors = {"features": single if exact else chunk.features}
        if chunk.images is not None:
            tensors["images"] = chunk.images
        stem = self._stem(about)
        with suppress(CheckpointError, OSError):
            files.make_folder(stem.parent)
            storage.save(stem, tensors, about)


def chunks(n: int) -> list[range]:
    """Split the numbers of n samples into chunks of at least two, as paired metrics need two."""
    lows = range(0, max(n - 1, 1), CHUNK)
    return [range(low, n if low == lows[-1] else low + CHUNK) for low in lows]


def identity(pipeline: Pipeline) -> str | None:
    """sha256 of everything that decides a pipeline's samples; None if that is unknown."""
    try:
        about = pipeline.describe()
    except ConfigError:  # a network without a recipe
        return None
    parts = [repr(about), digest_of(pipeline.denoiser)]
    parts.append(next(pipeline.denoiser.parameters(), torch.empty(0)).device.type)
    if pipeline.codec is not None:
        if not isinstance(pipeline.codec, nn.Module):
            return None
        parts.append(pipeline.codec.digest())
    if (defaults := digest_of_defaults(pipeline)) is not None:
        parts.append(defaults)
    return sha256_of(parts)
