"""Students that take their guidance scale as an input, held against the guided teacher at each scale.

Not against the data: a distance to them would reward a student that guides too little.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from halfstep.errors import ConfigError
from halfstep.evaluation.cost import calls_of
from halfstep.evaluation.distance_intervals import raw_frechet_interval, raw_frechet_ratio
from halfstep.evaluation.distances import frechet_distance, inception_score
from halfstep.evaluation.fidelity import root_mean, square_errors
from halfstep.evaluation.judge import Judge
from halfstep.evaluation.kept_samples import chunks, identity, Samples
from halfstep.pipeline import Pipeline
from halfstep.pipeline.walks import draws_noise

SCALES = (1.0, 1.3, 2.0, 3.0)
"""Guidance scales of the table, as far as they lie in the student's range."""
FINE = 9
"""Scales of the slider, besides those of the table."""


@dataclass(frozen=True)
class GuidedSubject:
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
    def ways(self) -> list[tuple[Pipeline, str, int]]:
        """What is sampled: the teacher, then every student."""
        students = [(s, s.own_sampler, len(s.times[0]) - 1) for s in self.students]
        return [(self.teacher, self.sampler, self.steps), *students]

    def reference(self, judge: Judge, scale: float, who: str | None) -> Samples:
        """What everyone is compared with at this scale: the teacher's samples of other noise."""
        at = judge.at(scale, judge.seed + 1)
        return self._samples(self.ways[0], at, who, images=False)

    def samples(self, judge: Judge, scale: float, who: str | None) -> list[Samples]:
        """Those of all ways, of the same noise."""
        at = judge.at(scale, judge.seed)
        first, *rest = self.ways
        return [self._samples(first, at, who), *(self._samples(way, at, None) for way in rest)]

    def _samples(
        self, way: tuple[Pipeline, str, int], judge: Judge, who: str | None, *, images: bool = True
    ) -> Samples:
        pipeline, sampler, steps = way
        return Samples(lambda: pipeline, who, sampler, steps, judge, images, self.cache)

    def ticks(self, judge: Judge, scales: Sequence[float]) -> int:
        """How often `Judge.progress` will be called by `guided_table`."""
        who = identity(self.teacher)
        every = [
            (self.reference(judge, scale, who), *self.samples(judge, scale, who))
            for scale in scales
        ]
        return sum(one.ticks(judge.n) for one in chain(*every))


def guided_table(subject: GuidedSubject, judge: Judge, scales: Sequence[float]) -> dict[str, Any]:
    """`guided` of report.json: every student at every scale, `judge.n` samples each.

    A distance is Fréchet's to the teacher's samples of other noise (seed + 1) at the same scale, at full
    steps; the teacher's own row is what a perfect student would score, and `times_floor` a student's
    distance over it, resampled in pairs.  Images are held some at a time, whatever n is.
    """
    who, rows = identity(subject.teacher), list[dict[str, Any]]()
    for scale in sorted(set(map(float, scales))):
        reference = subject.reference(judge, scale, who).features(judge.n)
        rows += _rows(subject, judge, scale, reference, subject.samples(judge, scale, who))
    return {
        "reference": {
            "samples": judge.n,
            "steps": subject.steps,
            "sampler": subject.sampler,
            "seed": judge.seed + 1,
        },
        "scales": sorted(set(map(float, scales))),
        "rows": rows,
    }


def _rows(
    subject: GuidedSubject,
    judge: Judge,
    scale: float,
    reference: Tensor,
    samples: Sequence[Samples],
) -> Iterator[dict[str, Any]]:
    """The teacher's row at this scale, and each student's."""
    features, squares = _walked(samples, judge.n)
    strata = 1 if judge.captions else max(len(subject.teacher.classes), 1)
    for k, (way, seen) in enumerate(zip(subject.ways, features, strict=True)):
        who = "student" if k else "teacher"
        ratio = raw_frechet_ratio(reference, seen, features[0], strata=strata) if k else None
        known = judge.features.head is not None
        yield {
            "guidance": scale,
            "who": who,
            "name": f"{who}, {_plural(way[2])}",
            "sampler": way[1],
            "steps": way[2],
            "calls": calls_of(*way, scale),
            "distance": raw_frechet_interval(reference, seen, strata=strata).to_json(),
            "times_floor": ratio.to_json() if ratio else None,
            "rmse": root_mean(squares[k]).to_json() if k and not draws_noise(way[1]) else None,
            "to_data": frechet_distance(judge.real_features, seen),
            "inception_score": inception_score(judge.features.probabilities(seen))
            if known
            else None,
        }


def _walked(samples: Sequence[Samples], n: int) -> tuple[list[Tensor], list[Tensor]]:
    """Features of every way, and its squared errors to the first; the images of one chunk at a time."""
    features: list[list[Tensor]] = [[] for _ in samples]
    squares: list[list[Tensor]] = [[] for _ in samples]
    for rows in chunks(n):
        first = None
        for k, one in enumerate(samples):
            found = one.chunk(rows)
            assert found.images is not None
            first = found.images if first is None else first
            features[k].append(found.features)
            squares[k].append(square_errors(first, found.images))
    return [torch.cat(parts) for parts in features], [torch.cat(parts) for parts in squares]


def guided_evidence(
    subject: GuidedSubject, judge: Judge, scales: Sequence[float], *, shown: int = 12
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """`guided` of report.json, and the slider's arrays of report.npz: `guided_steps` calls of progress."""
    fine = _fine(subject, scales)
    pictures = guided_pictures(subject, fine, n=shown, seed=judge.seed, progress=judge.progress)
    return guided_table(subject, judge, scales), pictures


def guided_steps(subject: GuidedSubject, judge: Judge, scales: Sequence[float]) -> int:
    """How often `guided_evidence` will call `Judge.progress`."""
    return subject.ticks(judge, scales) + pictured(subject, _fine(subject, scales))


def _fine(subject: GuidedSubject, scales: Sequence[float]) -> list[float]:
    guidance = subject.students[0].guidance if subject.students else None
    return list(scales) if guidance is None else slider_scales(guidance, scales)


def guided_pictures(
    subject: GuidedSubject,
    scales: Sequence[float],
    *,
    n: int = 12,
    seed: int = 0,
    progress: Callable[[], object] | None = None,
) -> dict[str, NDArray[Any]]:
    """`guided`, `guided_scales` and `guided_labels` of report.npz; nothing of points.

    Calls progress `pictured(subject, scales)` times.
    """
    if len(subject.teacher.shape) != 3:
        return {}
    shown = [
        [
            pipeline.sample(
                n, seed=seed, steps=steps, sampler=sampler, guidance=scale, progress=progress
            )
            for pipeline, sampler, steps in subject.ways
        ]
        for scale in scales
    ]
    levels = torch.stack([torch.stack(ways) for ways in shown])
    bytes_ = ((levels + 1) * 127.5).round().clamp(0, 255).byte()
    names = [_plural(steps) for _, _, steps in subject.ways]
    return {
        "guided": bytes_.permute(0, 1, 2, 4, 5, 3).contiguous().numpy(),
        "guided_scales": np.array(scales, dtype=np.float64),
        "guided_labels": np.array([f"teacher, {names[0]}", *names[1:]]),
    }


def pictured(subject: GuidedSubject, scales: Sequence[float]) -> int:
    """How often `guided_pictures` of up to 256 seeds calls its progress."""
    if len(subject.teacher.shape) != 3:
        return 0
    return len(scales) * sum(steps for _, _, steps in subject.ways)


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
    if teacher.guidance is None and teacher.nothing is None:
        raise ConfigError(
            "this teacher has no null class and cannot be guided: leave guidance out, or write guidance=1"
        )


def _plural(steps: int) -> str:
    return f"{steps} step{'s' if steps > 1 else ''}"
