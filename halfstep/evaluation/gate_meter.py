"""Measure the ratio of a student's distance to its teacher's, for the quality gate."""

import copy
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from halfstep.batch import batches
from halfstep.diffusion.time_grids import grid
from halfstep.evaluation.metrics.bootstrap import Interval
from halfstep.evaluation.metrics.distance_bootstrap import raw_frechet_ratio
from halfstep.evaluation.sample_cache import chunks, Samples
from halfstep.evaluation.sample_sets import NONE, SampleScorer, SampleSet
from halfstep.pipeline import Pipeline
from halfstep.progress import expected, Progress, SILENT

Showing = Callable[[str], AbstractContextManager[Progress]]
"""Open a progress display with this title."""


def silent(title: str) -> AbstractContextManager[Progress]:
    """Show nothing."""
    return nullcontext(SILENT)


class TeacherSource:
    """The teacher, on the device only while it is sampled, to leave the memory to training.

    load  reads the teacher again each time; without it, a copy waits in the CPU's memory when the device
          is a GPU
    """

    def __init__(
        self,
        teacher: Pipeline,
        device: torch.device | str = "cpu",
        load: Callable[[], Pipeline] | None = None,
    ):
        self.device, self._load = torch.device(device), load
        self._teacher = None if load else teacher
        if self._teacher is not None and self.device.type != "cpu":
            denoiser = copy.deepcopy(teacher.denoiser).freeze().to("cpu")
            self._teacher = replace(teacher, denoiser=denoiser)

    def __call__(self) -> Pipeline:
        """The teacher on its device."""
        if self._teacher is None:
            assert self._load is not None
            self._teacher = self._load()
        return self._teacher.to(self.device)

    def release(self) -> None:
        """Free the device's memory."""
        if self._load is not None:
            self._teacher = None
        elif self._teacher is not None:
            self._teacher.denoiser.to("cpu")


@dataclass(frozen=True)
class SampledNetwork:
    """A network that is compared with the teacher.

    name  a unique number
    make  returns the pipeline, on its device
    """

    name: int
    make: Callable[[], Pipeline]
    steps: int


class TeacherComparison(Protocol):
    """Compare students with their teacher at one guidance scale; keeps the teacher's samples."""

    def teacher_work(self, n: int) -> int:
        """Steps that `draw_teacher` takes."""

    def draw_teacher(self, n: int, progress: Progress) -> None:
        """Draw the teacher's missing samples for a ratio of n samples."""

    def student_work(self, network: SampledNetwork, n: int) -> int:
        """Steps that `ratio` takes."""

    def ratio(self, network: SampledNetwork, n: int, progress: Progress) -> Interval:
        """The ratio of a student's distance over its teacher's, from n samples."""


@dataclass
class Meter:
    """Measure the ratio that the gate compares with its tolerance.

    comparisons  one for each guidance scale; the largest ratio counts
    full_steps   the teacher's full steps
    grid         name of the time grid of a network that has none
    samples      number of samples of the first measurement
    """

    comparisons: Sequence[TeacherComparison]
    teacher: TeacherSource
    full_steps: int
    grid: str = "auto"
    samples: int = 2000
    showing: Showing = silent

    def student(self, student: Pipeline, n: int) -> Interval:
        """A student's distance over its teacher's at full steps, from n samples."""
        if not student.times:
            student = self._on_grid(student, self.full_steps)
        steps = min(student.step_counts)
        return self._ratio(SampledNetwork(steps, lambda: student.to(self.teacher.device), steps), n)

    def teacher_at(self, steps: int, n: int) -> Interval:
        """The teacher's own distance in fewer steps over that at full steps."""
        return self._ratio(
            SampledNetwork(-steps, lambda: self._on_grid(self.teacher(), steps), steps), n
        )

    def _on_grid(self, pipeline: Pipeline, steps: int) -> Pipeline:
        times = grid(self.grid, steps, pipeline.denoiser.schedule)
        return pipeline.on_grids(times)

    def _ratio(self, network: SampledNetwork, n: int) -> Interval:
        comparisons = self.comparisons
        with self.showing(f"measuring {network.steps} steps, {n:,} samples") as shown:
            work = sum(c.teacher_work(n) + c.student_work(network, n) for c in comparisons)
            progress = expected(shown, work)
            for comparison in comparisons:
                comparison.draw_teacher(n, progress)
            self.teacher.release()
            ratios = [comparison.ratio(network, n, progress) for comparison in comparisons]
        self.teacher.release()
        return largest(ratios)


def largest(ratios: Iterable[Interval]) -> Interval:
    """The elementwise maximum of some ratios: value, low and high."""
    ratios = list(ratios)
    return Interval(*(max(getattr(r, end) for r in ratios) for end in ("value", "low", "high")))


@dataclass
class AgainstData:
    """Compare Fréchet distances to the data, on the same noise; samples are added to those drawn before."""

    scorer: SampleScorer
    teacher: TeacherSource
    full_steps: int
    _teachers: SampleSet = NONE
    _students: tuple[int, SampleSet] = (0, NONE)

    def teacher_work(self, n: int) -> int:
        return self._work(self._teachers, self.full_steps, n)

    def draw_teacher(self, n: int, progress: Progress) -> None:
        if len(self._teachers) < n:
            self._teachers = self._extended(
                self._teachers, self.teacher(), self.full_steps, n, progress
            )

    def student_work(self, network: SampledNetwork, n: int) -> int:
        return self._work(self._student_samples(network), network.steps, n)

    def ratio(self, network: SampledNetwork, n: int, progress: Progress) -> Interval:
        samples = self._student_samples(network)
        if len(samples) < n:
            samples = self._extended(samples, network.make(), network.steps, n, progress)
        self._students = network.name, samples  # no other is measured again
        return self.scorer.ratio(samples.first(n), self._teachers.first(n))

    def _student_samples(self, network: SampledNetwork) -> SampleSet:
        name, samples = self._students
        return samples if name == network.name else NONE

    def _work(self, samples: SampleSet, steps: int, n: int) -> int:
        return steps * len(batches(range(len(samples), n), self.scorer.batch))

    def _extended(
        self, samples: SampleSet, pipeline: Pipeline, steps: int, n: int, progress: Progress
    ) -> SampleSet:
        sampler = pipeline.reference_sampler
        return self.scorer.extend(samples, pipeline, sampler, steps, n=n, progress=progress)


@dataclass
class AgainstTeacher:
    """Compare Fréchet distances to the guided teacher's samples of other noise, at one guidance scale.

    scorer     of this scale, with the gate's noise
    reference  the teacher's samples of other noise
    others     the teacher's samples of the gate's noise
    """

    scorer: SampleScorer
    reference: Samples
    others: Samples
    _features: dict[int, Tensor] = field(default_factory=dict)
    _reference: Tensor | None = None

    def teacher_work(self, n: int) -> int:
        work = 0 if n in self._features else self.others.work(chunks(n))
        return work + (self.reference.work(chunks(self.scorer.n)) if self._reference is None else 0)

    def draw_teacher(self, n: int, progress: Progress) -> None:
        if self._reference is None:
            self._reference = self.reference.features(self.scorer.n, progress=progress)
        if n not in self._features:
            self._features[n] = self.others.features(n, progress=progress)

    def student_work(self, network: SampledNetwork, n: int) -> int:
        return network.steps * len(batches(range(n), self.scorer.batch))

    def ratio(self, network: SampledNetwork, n: int, progress: Progress) -> Interval:
        student = network.make()
        samples = self.scorer.sample(
            student, student.sampler, network.steps, n=n, progress=progress
        )
        assert self._reference is not None
        return raw_frechet_ratio(
            self._reference, samples.features, self._features[n],
            block=self.scorer.n, strata=self.scorer.classes,
        )  # fmt: skip
