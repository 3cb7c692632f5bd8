"""The evidence of a run: every number of RUN/report.json and every picture of RUN/report.npz.

Teacher at full steps, undistilled teacher at not more network calls, and every student: the same noise,
the same features, the same number of samples, intervals on all of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from halfstep.batch import Cond
from halfstep.evaluation.compressed import as_trained, compressed, same_work
from halfstep.evaluation.cost import cost, SamplingSetup
from halfstep.evaluation.fidelity import grid_cost, learning_error
from halfstep.evaluation.guided import GuidedEvidence
from halfstep.evaluation.rows import drifted, memorised, pictures, row
from halfstep.evaluation.sample_sets import SampleScorer, SampleSet
from halfstep.evaluation.setups import (
    Candidates,
    counted,
    Evaluation,
    plural,
    Setup,
    steps_of,
    student_setups,
    teacher_setups,
    TIMED,
)
from halfstep.evaluation.statistics import fingerprint
from halfstep.pipeline import Pipeline
from halfstep.progress import expected, Progress, SILENT

FORMAT = 1


@dataclass
class Rows:
    """Rows of the table, what was sampled for each, and what drew it."""

    rows: list[dict[str, Any]]
    ways: list[SamplingSetup]
    full: SampleSet
    """The teacher's samples at full steps."""


def teacher_rows(
    teacher: Pipeline,
    counts: Sequence[int],
    judge: SampleScorer,
    asked: Evaluation,
    *,
    progress: Progress = SILENT,
) -> Rows:
    """The teacher at full steps, and with every baseline at not more calls than each count.

    Needs no student, so it can be done while they are trained.
    """
    return _teacher_rows(teacher_setups(teacher, counts, asked), judge, asked, progress)


def _teacher_rows(
    setups: Sequence[Setup], judge: SampleScorer, asked: Evaluation, progress: Progress
) -> Rows:
    progress = expected(progress, judge.steps(one.way for one in setups))
    first, *baselines = setups
    full = judge.sample(*first.way, progress=progress)
    rows = [row(first.who, first.name, first.way, full, judge, asked.metrics)]
    for one in baselines:
        seen = judge.sample(*one.way, progress=progress)
        rows.append(row(one.who, one.name, one.way, seen, judge, asked.metrics, full))
    return Rows(rows, [one.way for one in setups], full)


def gather(
    subject: Candidates,
    judge: SampleScorer,
    asked: Evaluation,
    *,
    of_teacher: Rows | None = None,
    guided: GuidedEvidence | None = None,
    progress: Progress = SILENT,
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """`measure`, `rows` and `guided` of report.json, and the pictures of report.npz.

    of_teacher  `teacher_rows`, where they were found before
    guided      what is sampled at every guidance scale, of students that take theirs as an input
    """
    counts = counted(map(steps_of, subject.students), asked)
    before = [] if of_teacher else teacher_setups(subject.teacher, counts, asked)
    after = student_setups(subject, counts)
    sampled = [one.way for one in (*before, *after)]
    timed = [*(of_teacher.ways if of_teacher else ()), *sampled]
    timings = asked.cost_rounds * len(TIMED) * len(timed)
    at_scales = guided.steps if guided else 0
    progress = expected(progress, judge.steps(sampled) + timings + at_scales)
    found = of_teacher or _teacher_rows(before, judge, asked, progress)
    rows, shown = _rows(subject, found, after, judge, asked, progress)
    if asked.cost_rounds:
        _time(rows, timed, judge, asked.cost_rounds, progress)
    measure = _how(subject, judge, asked, counts)
    report = {"format": FORMAT, "measure": measure, "rows": rows}
    drawn = pictures(shown, asked.shown)
    if guided:
        report["guided"], sliders = guided.measured(progress=progress)
        drawn |= sliders
    return report, drawn


def _rows(
    subject: Candidates,
    of_teacher: Rows,
    setups: Sequence[Setup],
    judge: SampleScorer,
    asked: Evaluation,
    progress: Progress,
) -> tuple[list[dict[str, Any]], list[tuple[str, Tensor]]]:
    """The teacher's rows and all others, and the images of teacher and students."""
    rows, full = list(of_teacher.rows), of_teacher.full
    held_out = None if subject.held_out is None else judge.features(subject.held_out)
    rows[0]["memorisation"] = memorised(full, held_out, judge)
    images, students = [(rows[0]["name"], full.images)], dict[int, SampleSet]()
    for one in setups:
        pipeline, _, steps = one.way
        seen = judge.sample(*one.way, progress=progress)
        mine = row(one.who, one.name, one.way, seen, judge, asked.metrics, full)
        if one.who == "student":
            mine["drift"] = drifted(full, seen)
            mine["split"] = _split(subject, steps, asked)
            mine["memorisation"] = memorised(seen, held_out, judge)
            if subject.variants_of(steps):
                mine["compressed"] = as_trained(pipeline, one.name)
            images.append((plural(steps), seen.images))
            students[steps] = seen
        elif one.variant:
            name = f"student, {plural(steps)}"
            mine["compressed"] = compressed(one.variant, seen, students[steps], name, judge)
        else:
            same = students.get(steps) if pipeline.times else None
            mine |= {"network": one.network, "student_over_it": _over(judge, same, seen)}
        rows.append(mine)
    return rows, images


def _time(
    rows: list[dict[str, Any]],
    ways: Sequence[SamplingSetup],
    judge: SampleScorer,
    rounds: int,
    progress: Progress,
) -> None:
    """Fill in what each row costs: all in turn."""
    timed = cost(ways, batches=TIMED, rounds=rounds, guidance=judge.guidance, progress=progress)
    for one, taken in zip(rows, timed, strict=True):
        one["cost"] = taken.to_json()
    same_work(rows)


def _how(
    subject: Candidates, judge: SampleScorer, asked: Evaluation, counts: Sequence[int]
) -> dict[str, Any]:
    """How all rows were measured."""
    return {
        "features": judge.features.name,
        "preprocessing": judge.features.preprocessing,
        "digest": judge.features.digest,
        "data": fingerprint(subject.data),
        "samples": asked.samples,
        "real": len(judge.real),
        "real_few": len(judge.real_few),
        "seed": asked.noise,
        "guidance": judge.guidance,
        "floor": judge.floor,
        "left_out": subject.left_out(asked),
    }


def _over(
    judge: SampleScorer, student: SampleSet | None, other: SampleSet
) -> dict[str, float] | None:
    """The student's distance over that of another student of as many steps, in pairs of the same noise."""
    if student is None:
        return None
    return judge.ratio(student, other).to_json()


def _split(subject: Candidates, count: int, asked: Evaluation) -> dict[str, Any] | None:
    """What the coarser grid costs by itself, and what the student failed to learn."""
    students = {steps_of(s): s for s in subject.students}
    before = students.get(2 * count)
    finer = before.times[0] if before is not None else subject.times
    if not asked.split_samples or len(finer) - 1 != 2 * count:
        return None
    if students[count].made_for != "ddim":
        return None  # whose step is another than the one that is split here
    if tuple(subject.data.shape) != tuple(subject.teacher.shape):
        return None  # images that a model of latents is judged by
    n = max(asked.split_samples, count)  # every time of the student's is visited
    batch = subject.data.batch(torch.arange(n) % len(subject.data))
    maker = before or subject.begun or subject.teacher
    said, takes = batch.cond or Cond(), maker.guidance is not None
    cond = replace(
        said,
        label=said.label if subject.teacher.classes else None,
        context=said.context if subject.teacher.empty is not None else None,
        guidance=torch.full((n,), asked.scale) if takes else None,
    )
    scale = asked.scale
    grid = grid_cost(
        subject.teacher, finer, n=asked.split_samples, seed=asked.noise, guidance=scale
    )
    learning = learning_error(students[count].denoiser, maker.denoiser, finer, batch.x0, cond=cond)
    return {"grid": grid.to_json(), "learning": learning.to_json()}
