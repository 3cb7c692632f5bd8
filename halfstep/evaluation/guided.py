"""Students that take their guidance scale as an input, held against the guided teacher at each scale.

Not against the data: a distance to them would reward a student that guides too little.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from halfstep.errors import ConfigError
from halfstep.evaluation.cost import calls_of, SamplingSetup
from halfstep.evaluation.distance_intervals import raw_frechet_interval, raw_frechet_ratio
from halfstep.evaluation.distances import frechet_distance, inception_score
from halfstep.evaluation.fidelity import root_mean, square_errors
from halfstep.evaluation.sample_cache import chunks, identity, Samples
from halfstep.evaluation.sample_sets import SampleScorer
from halfstep.pipeline import Pipeline
from halfstep.pipeline.walks import draws_noise
from halfstep.progress import expected, Progress, SILENT

SCALES = (1.0, 1.3, 2.0, 3.0)
"""Guidance scales of the table, as far as they lie in the student's range."""
FINE = 9
"""Scales of the slider, besides those of the table."""


@dataclass(frozen=True)
class GuidedCandidates:
    """The teacher, guided; and students, the one of the most steps first.

    steps, sampler  the teacher's at full steps
    cache           where its samples are kept, such as `cache_folder()`
    """

    teacher: Pipeline
    students: Sequence[Pipeline]
    steps: int = 64
    sampler: str = "ddim"
    cache: Path | None = None

    def __post_init__(self) -> None:
        refuse_unguided(self.teacher)

    @property
    def ways(self) -> list[SamplingSetup]:
        """What is sampled: the teacher, then every student."""
        students = [(s, s.own_sampler, len(s.times[0]) - 1) for s in self.students]
        return [(self.teacher, self.sampler, self.steps), *students]

    def at_scales(self, judge: SampleScorer, scales: Sequence[float]) -> "list[AtScale]":
        """What the table samples, the lowest scale first."""
        who, (first, *rest) = identity(self.teacher), self.ways
        found = []
        for scale in sorted(set(map(float, scales))):
            other, at = judge.at(scale, judge.seed + 1), judge.at(scale, judge.seed)
            reference = self._samples(first, other, who, images=False)
            own = [self._samples(first, at, who), *(self._samples(way, at, None) for way in rest)]
            found.append(AtScale(scale, reference, own))
        return found

    def _samples(
        self, way: SamplingSetup, judge: SampleScorer, who: str | None, *, images: bool = True
    ) -> Samples:
        pipeline, sampler, steps = way
        return Samples(lambda: pipeline, who, sampler, steps, judge, images, self.cache)


@dataclass(frozen=True)
class AtScale:
    """What is sampled at one guidance scale.

    reference  the teacher's samples of other noise, with which all are compared
    samples    those of all ways, of the same noise
    """

    scale: float
    reference: Samples
    samples: Sequence[Samples]


@dataclass(frozen=True)
class GuidedEvidence:
    """Every student at every scale, `judge.n` samples each, and pictures of more scales.

    shown  seeds of the slider

    A distance is Fréchet's to the teacher's samples of other noise (seed + 1) at the same scale, at full
    steps; the teacher's own row is what a perfect student would score, and `times_floor` a student's
    distance over it, resampled in pairs.  Images are held some at a time, whatever n is.
    """

    subject: GuidedCandidates
    judge: SampleScorer
    scales: Sequence[float]
    shown: int = 12

    @cached_property
    def _at_scales(self) -> list[AtScale]:
        return self.subject.at_scales(self.judge, self.scales)

    @cached_property
    def _pictured(self) -> list[tuple[float, SamplingSetup]]:
        """Scale and way of each row of pictures; none of points."""
        if len(self.subject.teacher.shape) != 3:
            return []
        own = self.subject.students[0].guidance if self.subject.students else None
        fine = list(self.scales) if own is None else slider_scales(own, self.scales)
        return list(product(fine, self.subject.ways))

    @property
    def steps(self) -> int:
        """All steps of `measured`."""
        return self._table_steps + self._pictures_steps

    @property
    def _table_steps(self) -> int:
        every = [one for at in self._at_scales for one in (at.reference, *at.samples)]
        return sum(one.work(chunks(self.judge.n)) for one in every)

    @property
    def _pictures_steps(self) -> int:
        return self.judge.steps([way for _, way in self._pictured], range(self.shown))

    def measured(
        self, *, progress: Progress = SILENT
    ) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """`guided` of report.json, and the slider's arrays of report.npz."""
        progress = expected(progress, self.steps)
        pictures = self.pictures(progress=progress)
        return self.table(progress=progress), pictures

    def table(self, *, progress: Progress = SILENT) -> dict[str, Any]:
        """`guided` of report.json."""
        progress = expected(progress, self._table_steps)
        subject, judge, rows = self.subject, self.judge, list[dict[str, Any]]()
        for at in self._at_scales:
            rows += _rows(subject, judge, at, progress)
        return {
            "reference": {
                "samples": judge.n,
                "steps": subject.steps,
                "sampler": subject.sampler,
                "seed": judge.seed + 1,
            },
            "scales": [at.scale for at in self._at_scales],
            "rows": rows,
        }

    def pictures(self, *, progress: Progress = SILENT) -> dict[str, NDArray[Any]]:
        """`guided`, `guided_scales` and `guided_labels` of report.npz; nothing of points."""
        if not self._pictured:
            return {}
        progress = expected(progress, self._pictures_steps)
        levels = torch.stack(
            [
                pipeline.sample(
                    self.shown, seed=self.judge.seed, steps=steps, sampler=sampler, guidance=scale,
                    batch=self.judge.batch, progress=progress,
                )
                for scale, (pipeline, sampler, steps) in self._pictured
            ]
        )  # fmt: skip
        bytes_ = ((levels + 1) * 127.5).round().clamp(0, 255).byte()
        first, *names = [_plural(steps) for _, _, steps in self.subject.ways]
        scales = [scale for scale, _ in self._pictured[:: 1 + len(names)]]
        by_scale = bytes_.unflatten(0, (len(scales), 1 + len(names)))
        return {
            "guided": by_scale.permute(0, 1, 2, 4, 5, 3).contiguous().numpy(),
            "guided_scales": np.array(scales, dtype=np.float64),
            "guided_labels": np.array([f"teacher, {first}", *names]),
        }


def _rows(
    subject: GuidedCandidates, judge: SampleScorer, at: AtScale, progress: Progress
) -> Iterator[dict[str, Any]]:
    """The teacher's row at this scale, and each student's."""
    reference = at.reference.features(judge.n, progress=progress)
    features, squares = _walked(at.samples, judge.n, progress)
    strata = 1 if judge.captions else max(len(subject.teacher.classes), 1)
    for k, (way, seen) in enumerate(zip(subject.ways, features, strict=True)):
        who = "student" if k else "teacher"
        ratio = raw_frechet_ratio(reference, seen, features[0], strata=strata) if k else None
        known = judge.features.head is not None
        yield {
            "guidance": at.scale,
            "who": who,
            "name": f"{who}, {_plural(way[2])}",
            "sampler": way[1],
            "steps": way[2],
            "calls": calls_of(*way, at.scale),
            "distance": raw_frechet_interval(reference, seen, strata=strata).to_json(),
            "times_floor": ratio.to_json() if ratio else None,
            "rmse": root_mean(squares[k]).to_json() if k and not draws_noise(way[1]) else None,
            "to_data": frechet_distance(judge.real_features, seen),
            "inception_score": inception_score(judge.features.probabilities(seen))
            if known
            else None,
        }


def _walked(
    samples: Sequence[Samples], n: int, progress: Progress
) -> tuple[list[Tensor], list[Tensor]]:
    """Features of every way, and its squared errors to the first; the images of one chunk at a time."""
    features: list[list[Tensor]] = [[] for _ in samples]
    squares: list[list[Tensor]] = [[] for _ in samples]
    for rows in chunks(n):
        first = None
        for k, one in enumerate(samples):
            found = one.chunk(rows, progress=progress)
            assert found.images is not None
            first = found.images if first is None else first
            features[k].append(found.features)
            squares[k].append(square_errors(first, found.images))
    return [torch.cat(parts) for parts in features], [torch.cat(parts) for parts in squares]


def table_scales(guidance: tuple[float, float], asked: Sequence[float] = ()) -> tuple[float, ...]:
    """The scales of the table: those asked for, or 1, 1.3, 2 and 3 as far as they lie in the range."""
    low, high = guidance
    if outside := [scale for scale in asked if not low <= scale <= high]:
        raise ConfigError(
            f"these students take guidance scales from {low:g} to {high:g}, asked for {outside[0]:g}: write "
            f"{min(max(outside[0], low), high):g}"
        )
    inside = tuple(scale for scale in SCALES if low <= scale <= high)
    return tuple(sorted(set(map(float, asked)))) or inside or (low, high)


def slider_scales(guidance: tuple[float, float], table: Sequence[float]) -> list[float]:
    """About nine over the range, and those of the table."""
    even = [round(float(x), 4) for x in np.linspace(*guidance, FINE)]
    return sorted({*even, *map(float, table)})


def refuse_unguided(teacher: Pipeline) -> None:
    """`ConfigError` for one that cannot be guided."""
    if teacher.guidance is None and teacher.unconditional is None:
        raise ConfigError(
            "this teacher has no null class and cannot be guided: leave guidance out, or write guidance=1"
        )


def _plural(steps: int) -> str:
    return f"{steps} step{'s' if steps > 1 else ''}"
