"""Compare students that take the guidance scale as an input with the guided teacher at each scale.

A distance to the data instead would reward a student that guides too little.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from halfstep.diffusion.samplers import draws_noise
from halfstep.errors import ConfigError
from halfstep.evaluation.metrics.cost import calls_of, SamplingSetup
from halfstep.evaluation.metrics.distance_bootstrap import raw_frechet_interval, raw_frechet_ratio
from halfstep.evaluation.metrics.distances import frechet_distance, inception_score
from halfstep.evaluation.metrics.fidelity import root_mean, square_errors
from halfstep.evaluation.report_data import GuidedReference, GuidedRow, GuidedTable, Pictures
from halfstep.evaluation.row_metrics import bytes_of
from halfstep.evaluation.sample_cache import chunks, identity, Samples
from halfstep.evaluation.sample_sets import SampleScorer
from halfstep.evaluation.scorer import classes_in_turn
from halfstep.evaluation.setups import Candidates, chosen_counts, Evaluation, plural, steps_of
from halfstep.files import cache_folder
from halfstep.pipeline import Pipeline
from halfstep.progress import expected, Progress, SILENT

SCALES = (1.0, 1.3, 2.0, 3.0)
"""Default guidance scales of the table, those in the student's range."""
FINE = 9
"""Evenly spaced scales of the slider, besides those of the table."""


@dataclass(frozen=True)
class GuidedCandidates:
    """The guided teacher and its students, most steps first.

    steps, sampler  full steps and sampler of the teacher
    cache           folder to cache its samples in, such as `cache_folder()`
    """

    teacher: Pipeline
    students: Sequence[Pipeline]
    steps: int = 64
    sampler: str = "ddim"
    cache: Path | None = None

    def __post_init__(self) -> None:
        refuse_unguided(self.teacher)

    @property
    def setups(self) -> list[SamplingSetup]:
        """The sampling setups: the teacher, then every student."""
        students = [(s, s.sampler, len(s.times[0]) - 1) for s in self.students]
        return [(self.teacher, self.sampler, self.steps), *students]

    def at_scales(self, scorer: SampleScorer, scales: Sequence[float]) -> "list[AtScale]":
        """The samples of the table, lowest scale first."""
        fingerprint, (teacher, *students) = identity(self.teacher), self.setups
        at_scales = []
        for scale in sorted(set(map(float, scales))):
            other, at = scorer.at(scale, scorer.seed + 1), scorer.at(scale, scorer.seed)
            reference = self._samples(teacher, other, fingerprint, images=False)
            samples = [self._samples(teacher, at, fingerprint)]
            samples += [self._samples(setup, at, None) for setup in students]
            at_scales.append(AtScale(scale, reference, samples))
        return at_scales

    def _samples(
        self,
        setup: SamplingSetup,
        scorer: SampleScorer,
        fingerprint: str | None,
        *,
        images: bool = True,
    ) -> Samples:
        pipeline, sampler, steps = setup
        return Samples(lambda: pipeline, fingerprint, sampler, steps, scorer, images, self.cache)


@dataclass(frozen=True)
class AtScale:
    """Samples at one guidance scale.

    reference  the teacher's samples of other noise, the reference of all distances
    samples    samples of all setups, of the same noise
    """

    scale: float
    reference: Samples
    samples: Sequence[Samples]


@dataclass(frozen=True)
class GuidedEvaluation:
    """Compare every student with the guided teacher at every scale, and draw pictures at more scales.

    shown  number of seeds of the slider

    `scorer.n` samples of each are drawn.  The distance is Fréchet's, to the teacher's samples of other noise
    (seed + 1) at the same scale and full steps.  The teacher's own row is the score of a perfect student;
    `floor_ratio` is a student's distance over it, resampled in pairs.  Memory does not grow with n.
    """

    candidates: GuidedCandidates
    scorer: SampleScorer
    scales: Sequence[float]
    shown: int = 12

    @cached_property
    def _at_scales(self) -> list[AtScale]:
        return self.candidates.at_scales(self.scorer, self.scales)

    @cached_property
    def _pictured(self) -> list[tuple[float, SamplingSetup]]:
        """Scale and setup of each row of pictures; empty for points."""
        if len(self.candidates.teacher.shape) != 3:
            return []
        students = self.candidates.students
        scales = students[0].guidance_range if students else None
        fine = list(self.scales) if scales is None else slider_scales(scales, self.scales)
        return list(product(fine, self.candidates.setups))

    @property
    def steps(self) -> int:
        """Total sampling steps of `measure`."""
        return self._table_steps + self._pictures_steps

    @property
    def _table_steps(self) -> int:
        parts = chunks(self.scorer.n)
        return sum(s.work(parts) for at in self._at_scales for s in (at.reference, *at.samples))

    @property
    def _pictures_steps(self) -> int:
        return self.scorer.steps([setup for _, setup in self._pictured], range(self.shown))

    def measure(self, *, progress: Progress = SILENT) -> tuple[GuidedTable, Pictures]:
        """The table, and the pictures of the slider."""
        progress = expected(progress, self.steps)
        pictures = self.pictures(progress=progress)
        return self.table(progress=progress), pictures

    def table(self, *, progress: Progress = SILENT) -> GuidedTable:
        """The table of every student at every scale."""
        progress = expected(progress, self._table_steps)
        candidates, scorer, rows = self.candidates, self.scorer, list[GuidedRow]()
        for at in self._at_scales:
            rows += _rows(candidates, scorer, at, progress)
        reference = GuidedReference(scorer.n, candidates.steps, candidates.sampler, scorer.seed + 1)
        return GuidedTable(reference, tuple(at.scale for at in self._at_scales), tuple(rows))

    def pictures(self, *, progress: Progress = SILENT) -> Pictures:
        """The arrays `guided`, `guided_scales` and `guided_labels`; empty for points."""
        if not self._pictured:
            return {}
        progress = expected(progress, self._pictures_steps)
        scorer = self.scorer
        draw = partial(_pictured, n=self.shown, seed=scorer.seed, batch=scorer.batch)
        levels = torch.stack(list(scorer.division.map(draw, self._pictured, progress)))
        first, *names = [plural(steps) for _, _, steps in self.candidates.setups]
        scales = [scale for scale, _ in self._pictured[:: 1 + len(names)]]
        return {
            "guided": bytes_of(levels.unflatten(0, (len(scales), 1 + len(names)))),
            "guided_scales": np.array(scales, dtype=np.float64),
            "guided_labels": np.array([f"teacher, {first}", *names]),
        }


def _pictured(
    of: tuple[float, SamplingSetup], progress: Progress, *, n: int, seed: int, batch: int
) -> Tensor:
    """The first n samples of a setup at a guidance scale."""
    scale, (pipeline, sampler, steps) = of
    return pipeline.sample(
        n,
        seed=seed,
        steps=steps,
        sampler=sampler,
        guidance_scale=scale,
        batch=batch,
        progress=progress,
    )


def _rows(
    candidates: GuidedCandidates, scorer: SampleScorer, at: AtScale, progress: Progress
) -> Iterator[GuidedRow]:
    """The teacher's row at this scale, and each student's."""
    reference = at.reference.features(scorer.n, progress=progress)
    features, squares = _sampled(at.samples, scorer.n, progress)
    strata = classes_in_turn(candidates.teacher, scorer.captions)
    has_classes = scorer.features.head is not None
    for k, (setup, fake) in enumerate(zip(candidates.setups, features, strict=True)):
        role: Literal["teacher", "student"] = "student" if k else "teacher"
        ratio = raw_frechet_ratio(reference, fake, features[0], strata=strata) if k else None
        score = inception_score(scorer.features.probabilities(fake)) if has_classes else None
        yield GuidedRow(
            guidance_scale=at.scale,
            role=role,
            name=f"{role}, {plural(setup[2])}",
            sampler=setup[1],
            steps=setup[2],
            calls=calls_of(*setup, at.scale),
            distance=raw_frechet_interval(reference, fake, strata=strata),
            floor_ratio=ratio,
            rmse=root_mean(squares[k]) if k and not draws_noise(setup[1]) else None,
            data_distance=frechet_distance(scorer.real_features, fake),
            inception_score=score,
        )


def _sampled(
    samples: Sequence[Samples], n: int, progress: Progress
) -> tuple[list[Tensor], list[Tensor]]:
    """Features of every setup and its squared errors against the first setup, chunk by chunk."""
    features: list[list[Tensor]] = [[] for _ in samples]
    squares: list[list[Tensor]] = [[] for _ in samples]
    for rows in chunks(n):
        first = None
        for k, setup_samples in enumerate(samples):
            chunk = setup_samples.chunk(rows, progress=progress)
            assert chunk.images is not None
            first = chunk.images if first is None else first
            features[k].append(chunk.features)
            squares[k].append(square_errors(first, chunk.images))
    return [torch.cat(parts) for parts in features], [torch.cat(parts) for parts in squares]


def guided_evaluation(
    candidates: Candidates, scorer: SampleScorer, config: Evaluation
) -> GuidedEvaluation | None:
    """The comparison of students that take the scale as an input; None without such students."""
    students = {steps_of(s): s for s in candidates.students if s.guidance_range is not None}
    if not students:
        return None
    chosen = [students[count] for count in chosen_counts(students, config)]
    guided = GuidedCandidates(
        candidates.teacher, chosen, config.full_steps, config.full_sampler, cache_folder()
    )
    scales = table_scales(chosen[0].guidance_range or (1.0, 1.0), config.guidance_scales)
    return GuidedEvaluation(guided, scorer, scales, config.shown)


def scales_of(
    config: Evaluation, teacher: Pipeline, students: Sequence[Pipeline]
) -> tuple[float, ...]:
    """The guidance scales to evaluate; `ConfigError` for scales that these networks do not take."""
    ranges = [student.guidance_range for student in students if student.guidance_range is not None]
    if ranges:
        return table_scales(ranges[0], config.guidance_scales)
    if len(config.guidance_scales) > 1:
        raise ConfigError(
            f"students without a guidance scale as an input are evaluated at one scale, got "
            f"{len(config.guidance_scales)}: write --guidance-scales {config.guidance_scales[0]:g}"
        )
    if teacher.guidance_range is not None:  # evaluated alone
        return config.guidance_scales or table_scales(teacher.guidance_range)[:1]
    if set(config.guidance_scales) - {1.0}:
        refuse_unguided(teacher)
    return config.guidance_scales


def table_scales(
    guidance_range: tuple[float, float], scales: Sequence[float] = ()
) -> tuple[float, ...]:
    """The scales of the table; by default those of 1, 1.3, 2 and 3 in the range."""
    low, high = guidance_range
    if outside := [scale for scale in scales if not low <= scale <= high]:
        raise ConfigError(
            f"these students take guidance scales from {low:g} to {high:g}, got {outside[0]:g}: write "
            f"{min(max(outside[0], low), high):g}"
        )
    inside = tuple(scale for scale in SCALES if low <= scale <= high)
    return tuple(sorted(set(map(float, scales)))) or inside or (low, high)


def slider_scales(guidance_range: tuple[float, float], table: Sequence[float]) -> list[float]:
    """Nine scales over the range, and those of the table."""
    even = [round(float(x), 4) for x in np.linspace(*guidance_range, FINE)]
    return sorted({*even, *map(float, table)})


def refuse_unguided(teacher: Pipeline) -> None:
    """Raise `ConfigError` for a teacher that cannot be guided."""
    if teacher.guidance_range is None and teacher.unconditional is None:
        raise ConfigError(
            "this teacher has no null class and cannot be guided: write guidance_scale=1"
        )
