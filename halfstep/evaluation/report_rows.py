"""Measure the rows of a report: teacher at full steps, baselines, students, other networks.

All rows have the same noise, features and number of samples; every number has an interval.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from halfstep.batch import Cond
from halfstep.evaluation.compressed import as_trained, compressed, with_students_work
from halfstep.evaluation.features.cache import fingerprint
from halfstep.evaluation.guided_comparison import guided_evaluation, GuidedEvaluation
from halfstep.evaluation.metrics.cost import cost
from halfstep.evaluation.metrics.fidelity import grid_cost, learning_error
from halfstep.evaluation.metrics.memorisation import Memorisation
from halfstep.evaluation.report_data import GuidedTable, Measurement, Pictures, Row, Split
from halfstep.evaluation.row_metrics import drift_of, row, sheets
from halfstep.evaluation.sample_sets import SampleScorer, SampleSet
from halfstep.evaluation.setups import (
    Candidates,
    chosen_counts,
    Evaluation,
    plural,
    Setup,
    steps_of,
    student_setups,
    teacher_setups,
    TIMED,
)
from halfstep.evaluation.standing import BestBaseline
from halfstep.evaluation.verdicts import AT, nearest
from halfstep.pipeline import Pipeline
from halfstep.pipeline.conditioning import condition
from halfstep.progress import expected, Progress, SILENT


@dataclass(frozen=True)
class TeacherRows:
    """The teacher's rows, their setups, and the samples at full steps.

    features  of the samples of the baselines that are best with at most some number of calls, by name
    """

    rows: Sequence[Row]
    setups: Sequence[Setup]
    full: SampleSet
    features: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Measurements:
    """The measured parts of a report."""

    measure: Measurement
    rows: tuple[Row, ...]
    guided: GuidedTable | None
    pictures: Pictures


def teacher_rows(
    teacher: Pipeline,
    counts: Sequence[int],
    scorer: SampleScorer,
    config: Evaluation,
    *,
    progress: Progress = SILENT,
) -> TeacherRows:
    """Measure the teacher at full steps, and every baseline with at most as many calls as each of `counts`.

    Needs no students, so it can run before they are trained.
    """
    setups = teacher_setups(teacher, counts, config)
    return _teacher_rows(setups, scorer, config, progress)


def _teacher_rows(
    setups: Sequence[Setup], scorer: SampleScorer, config: Evaluation, progress: Progress
) -> TeacherRows:
    progress = expected(progress, scorer.steps(setup.sampling for setup in setups))
    first, *baselines = setups
    full = scorer.sample(*first.sampling, progress=progress)
    rows = [row(first, full, scorer, config.metrics)]
    features = dict[str, Tensor]()
    for setup in baselines:
        samples = scorer.sample(*setup.sampling, progress=progress)
        rows.append(row(setup, samples, scorer, config.metrics, full))
        features[setup.name] = samples.features
        best = {other.name for done in rows[1:] for other in nearest(rows[1:], done.calls)}
        features = {name: known for name, known in features.items() if name in best}
    return TeacherRows(rows, setups, full, features)


@dataclass(frozen=True)
class Comparison:
    """The networks to compare, the scorer of their samples, and the measurements to make."""

    candidates: Candidates
    scorer: SampleScorer
    config: Evaluation

    def guided(self) -> GuidedEvaluation | None:
        """The comparison at every guidance scale; None without students that take the scale as an input."""
        return guided_evaluation(self.candidates, self.scorer, self.config)

    def measure(
        self,
        *,
        machine: str = "",
        teacher_rows: TeacherRows | None = None,
        guided: GuidedEvaluation | None = None,
        progress: Progress = SILENT,
    ) -> Measurements:
        """Measure every number and picture of a report.

        machine     description of this machine
        teacher_rows  the teacher's rows, if already measured
        guided      the comparison at every guidance scale, if the report has one
        """
        candidates, scorer, config = self.candidates, self.scorer, self.config
        counts = chosen_counts(map(steps_of, candidates.students), config)
        before = [] if teacher_rows else teacher_setups(candidates.teacher, counts, config)
        after = student_setups(candidates, counts)
        setups = [*(teacher_rows.setups if teacher_rows else before), *after]
        timings = config.cost_rounds * len(TIMED) * len(setups)
        sampling = scorer.steps(setup.sampling for setup in (*before, *after))
        progress = expected(progress, sampling + timings + (guided.steps if guided else 0))
        teacher_rows = teacher_rows or _teacher_rows(before, scorer, config, progress)
        rows, images = self._rows(teacher_rows, after, progress)
        if config.cost_rounds:
            rows = self._with_cost(rows, setups, progress)
        pictures = sheets(images, config.shown, candidates.teacher.class_names)
        table = None
        if guided:
            table, sliders = guided.measure(progress=progress)
            pictures = {**pictures, **sliders}
        return Measurements(self._measurement(machine), tuple(rows), table, pictures)

    def _rows(
        self, teacher_rows: TeacherRows, setups: Sequence[Setup], progress: Progress
    ) -> tuple[list[Row], list[tuple[str, Tensor]]]:
        """All rows, and the images of teacher and students."""
        candidates, scorer = self.candidates, self.scorer
        (teacher, *baselines), full = teacher_rows.rows, teacher_rows.full
        rows = [replace(teacher, memorisation=self._memorisation(full)), *baselines]
        images, students = [(teacher.name, full.images)], dict[int, SampleSet]()
        for setup in setups:
            pipeline, _, steps = setup.sampling
            samples = scorer.sample(*setup.sampling, progress=progress)
            result = row(setup, samples, scorer, self.config.metrics, full)
            if setup.role == "student":
                smaller = candidates.variants_of(steps)
                result = replace(
                    result,
                    drift=drift_of(full, samples),
                    split=self._split(steps),
                    memorisation=self._memorisation(samples),
                    compressed=as_trained(pipeline, setup.name) if smaller else None,
                    baseline=self._baseline(teacher_rows, result.calls, samples),
                )
                images.append((plural(steps), samples.images))
                students[steps] = samples
            elif setup.variant:
                made = compressed(setup.variant, samples, students[steps], setup.student, scorer)
                result = replace(result, compressed=made)
            else:
                same = students.get(steps) if pipeline.times else None
                over = None if same is None else scorer.ratio(same, samples)
                result = replace(result, network=setup.network, student_ratio=over)
            rows.append(result)
        return rows, images

    def _memorisation(self, samples: SampleSet) -> Memorisation | None:
        """Memorisation, by distances in feature space; None without held-out data."""
        training = self.candidates.training
        return None if training is None else training.memorisation(samples.features)

    def _baseline(
        self, teacher_rows: TeacherRows, calls: int, samples: SampleSet
    ) -> BestBaseline | None:
        """The best baseline with at most so many calls, and the student's distance over its own."""
        names = tuple(other.name for other in nearest(teacher_rows.rows[1:], calls))
        if not names:
            return None
        other = SampleSet(samples.images, teacher_rows.features[names[0]], 0.0)
        return BestBaseline(names, self.scorer.ratio(samples, other))

    def _with_cost(
        self, rows: Sequence[Row], setups: Sequence[Setup], progress: Progress
    ) -> list[Row]:
        """The rows with their cost."""
        costs = cost(
            [setup.sampling for setup in setups], batches=TIMED, rounds=self.config.cost_rounds,
            guidance_scale=self.scorer.guidance_scale, progress=progress,
        )  # fmt: skip
        timed = zip(rows, costs, strict=True)
        return with_students_work([replace(row, cost=row_cost) for row, row_cost in timed])

    def _measurement(self, machine: str) -> Measurement:
        """The settings of the measurements."""
        candidates, scorer, config = self.candidates, self.scorer, self.config
        return Measurement(
            features=scorer.features.name,
            preprocessing=scorer.features.preprocessing,
            digest=scorer.features.digest,
            data=fingerprint(candidates.held_out or candidates.data),
            samples=config.samples,
            real=len(scorer.real),
            real_few=len(scorer.real_few),
            held_out=candidates.held_out is not None,
            seed=config.seed,
            guidance_scale=scorer.guidance_scale,
            floor=scorer.floor,
            floor_at_2000=scorer.floor_of(AT),
            floor_note=scorer.floor_note,
            left_out=tuple(candidates.left_out(config)),
            machine=machine,
        )

    def _split(self, count: int) -> Split | None:
        """Split a student's error into the cost of the coarser grid and the error of learning.

        None if the student does not halve a known grid by DDIM steps, and for latents scored as images.
        """
        candidates, config = self.candidates, self.config
        if candidates.halved is not None and count not in candidates.halved:
            return None
        data, teacher = candidates.data, candidates.teacher
        students = {steps_of(s): s for s in candidates.students}
        before = students.get(2 * count)
        finer = before.times[0] if before is not None else candidates.times
        if not config.split_samples or len(finer) - 1 != 2 * count:
            return None
        kind = students[count].sampler, students[count].direction
        if kind != ("ddim", "denoise") or tuple(data.shape) != tuple(teacher.shape):
            return None
        n = max(config.split_samples, count)  # each of the student's times needs an image
        batch = data.batch(torch.arange(n) % len(data))
        maker = before or candidates.first_teacher or teacher
        cond = replace(
            condition(teacher, n, prompts=batch.cond) or Cond(),
            label=batch.cond.label if batch.cond is not None and teacher.class_names else None,
            guidance_scale=torch.full((n,), config.scale) if maker.takes_scale else None,
        )
        grid = grid_cost(
            teacher, finer, n=config.split_samples, seed=config.seed, guidance_scale=config.scale,
            division=self.scorer.division,
        )  # fmt: skip
        learning = learning_error(
            students[count].denoiser, maker.denoiser, finer, batch.x0, cond=cond
        )
        return Split(grid, learning)
