"""The evidence of a run: every number of RUN/report.json and every picture of RUN/report.npz.

Teacher at full steps, undistilled teacher at not more network calls, and every student: the same noise,
the same features, the same number of samples, intervals on all of it.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from halfstep.batch import Cond
from halfstep.data import Data
from halfstep.errors import ConfigError, unknown
from halfstep.evaluation.compressed import as_trained, compressed, same_work, Variant
from halfstep.evaluation.cost import calls_of, cost, Way
from halfstep.evaluation.fidelity import grid_cost, learning_error
from halfstep.evaluation.guided import GuidedEvidence
from halfstep.evaluation.judge import Judge, Seen
from halfstep.evaluation.rows import drifted, memorised, METRICS, pictures, row
from halfstep.evaluation.statistics import fingerprint
from halfstep.kinds import at_least, at_most, Count, hold_to_kinds, NotNegative, Seed
from halfstep.pipeline import Pipeline
from halfstep.pipeline.walks import check_walk
from halfstep.progress import expected, Progress, SILENT
from halfstep.samplers import calls, PREFIX, STEPS, WALKS
from halfstep.timegrids import Steps, Times

FORMAT = 1
MOST = 10_000_000
"""Samples per score: two hundred times as many as papers take."""
SampleCount = Annotated[int, at_least(8), at_most(MOST)]
TIMED = (1, 64)
"""Batch sizes at which seconds are measured."""
SAMPLERS = (*STEPS, *WALKS, "ancestral")
"""Of the teacher; diffusers' schedulers besides."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What is measured, and how closely."""

    samples: SampleCount = 2000
    """Samples per score, of teacher and students alike."""
    noise: Seed = 0
    """Seed of the noise that every row starts from."""
    full: Annotated[Steps, at_least(0)] = 64
    """Steps of the teacher that all is compared with; 0 is the gate's, or 64 where there was none."""
    full_sampler: str = "ddim"
    """Its sampler there, such as dpm-fast; the gate always compares with DDIM."""
    counts: tuple[int, ...] = ()
    """Steps of the students to judge; all there are by default."""
    baselines: tuple[str, ...] = ("ddim", "heun", "dpmpp-2m")
    """Samplers of the undistilled teacher, at not more calls: ddim, heun, dpmpp-2m, ancestral, dpmpp-3s,
    dpm-fast, euler-maruyama; diffusers:NAME is one of diffusers'."""
    metrics: tuple[str, ...] = METRICS
    """Distances of each row: frechet is always there, inception where the features know classes."""
    guidance: tuple[NotNegative, ...] = ()
    """Guidance scales: of a student that takes its scale as an input those that it is held against the
    guided teacher at (1, 1.3, 2 and 3 by default), all else at the lowest; of others the one of all."""
    shown: Annotated[Count, at_most(1_000)] = 12
    """Seeds in the grid of samples."""
    split_samples: Annotated[int, at_least(0), at_most(MOST)] = 500
    """Samples for the two parts of a student's error; 0 leaves them out."""
    cost_rounds: Annotated[int, at_least(0), at_most(10_000)] = 5
    """Rounds of timing, all rows in turn; 0 leaves cost out."""

    def __post_init__(self) -> None:
        hold_to_kinds(self)
        if self.split_samples == 1:
            raise ConfigError("one sample has no interval: write split_samples=2 or more, or 0")
        for name in self.metrics:
            if name not in METRICS:
                raise unknown("metric", name, METRICS)
        for name in (self.full_sampler, *self.baselines):
            if not name.startswith(PREFIX) and name not in SAMPLERS:
                raise unknown("sampler", name, [*SAMPLERS, f"{PREFIX}NAME"])

    @property
    def scale(self) -> float:
        """The guidance scale of all rows."""
        return min(self.guidance, default=1.0)


@dataclass(frozen=True)
class Subject:
    """What is judged: a teacher, the students made from it, and its data.

    students  the one of the most steps first, each made from the one before
    times     the teacher's grid, which the first student halves
    held_out  data that nobody was trained on; None leaves memorisation out
    begun     what the first student was made from, where that is not the teacher: the first stage of a
              guided distillation, the network that a plan shrank to
    others    (name, pipeline, steps) of what is to be seen beside them: networks of other sizes
    variants  students made smaller after training
    """

    teacher: Pipeline
    students: Sequence[Pipeline]
    data: Data
    times: Times = ()
    held_out: Tensor | None = None
    begun: Pipeline | None = None
    others: Sequence[tuple[str, Pipeline, int]] = ()
    variants: Sequence[Variant] = ()

    def variants_of(self, count: int) -> list[Variant]:
        """Of the student of so many steps."""
        return [one for one in self.variants if one.steps == count]

    def left_out(self, asked: Evaluation) -> list[str]:
        """Which baselines will not be sampled, and why, a sentence each."""
        return _left_out(self.teacher, counted(map(_steps, self.students), asked), asked)


@dataclass
class Rows:
    """Rows of the table, what was sampled for each, and what drew it."""

    rows: list[dict[str, Any]]
    ways: list[Way]
    full: Seen
    """The teacher's samples at full steps."""


@dataclass(frozen=True)
class Setup:
    """How a row is sampled.

    who      teacher, baseline, student, compressed or other
    variant  of one that is compressed
    network  of another: its name
    """

    who: str
    name: str
    way: Way
    variant: Variant | None = None
    network: str = ""


def teacher_rows(
    teacher: Pipeline,
    counts: Sequence[int],
    judge: Judge,
    asked: Evaluation,
    *,
    progress: Progress = SILENT,
) -> Rows:
    """The teacher at full steps, and with every baseline at not more calls than each count.

    Needs no student, so it can be done while they are trained.
    """
    return _teacher_rows(_of_teacher(teacher, counts, asked), judge, asked, progress)


def _teacher_rows(
    setups: Sequence[Setup], judge: Judge, asked: Evaluation, progress: Progress
) -> Rows:
    progress = expected(progress, judge.steps(one.way for one in setups))
    first, *baselines = setups
    full = judge.see(*first.way, progress=progress)
    rows = [row(first.who, first.name, first.way, full, judge, asked.metrics)]
    for one in baselines:
        seen = judge.see(*one.way, progress=progress)
        rows.append(row(one.who, one.name, one.way, seen, judge, asked.metrics, full))
    return Rows(rows, [one.way for one in setups], full)


def _of_teacher(teacher: Pipeline, counts: Sequence[int], asked: Evaluation) -> list[Setup]:
    """The teacher at full steps, and the baselines: once where one serves two counts, and of a teacher that
    is a student its own steps."""
    walkable(teacher, asked.full_sampler, asked.full)
    sampler = "" if asked.full_sampler == "ddim" else f"{asked.full_sampler}, "
    way = teacher, asked.full_sampler, asked.full
    found = [Setup("teacher", f"teacher, {sampler}{_plural(asked.full)}", way)]
    for (sampler, steps), refused in _tried(teacher, counts, asked):
        if refused is None:
            name = f"teacher, {sampler}, {_plural(steps)}"
            found.append(Setup("baseline", name, (teacher, sampler, steps)))
    return found


def _of_students(subject: Subject, counts: Sequence[int]) -> list[Setup]:
    """Each student and its variants, then networks of other sizes."""
    students, found = {_steps(s): s for s in subject.students}, list[Setup]()
    for count in counts:
        name, student = f"student, {_plural(count)}", students[count]
        found.append(Setup("student", name, (student, student.own_sampler, count)))
        for one in subject.variants_of(count):
            found.append(Setup("compressed", f"{name}, {one.kind}", one.way, variant=one))
    for network, other, steps in subject.others:
        way = other, other.own_sampler, steps
        found.append(Setup("other", f"{network}, {_plural(steps)}", way, network=network))
    return found


def walkable(teacher: Pipeline, sampler: str, steps: int) -> None:
    """Raises `ConfigError` where the grid or the schedule does not take this sampler; asks no network."""
    check_walk(sampler, teacher.grid(steps, sampler), teacher.denoiser.schedule)


def _left_out(teacher: Pipeline, counts: Sequence[int], asked: Evaluation) -> list[str]:
    tried = list(_tried(teacher, counts, asked))
    some = {sampler for (sampler, _), why in tried if why is None}
    found = dict[tuple[str, str], str]()
    for (sampler, steps), why in tried:
        if why is not None:  # once of a sampler that is nowhere in the table
            where = f" in {_plural(steps)}" if sampler in some else ""
            found[sampler, where] = f"no baseline {sampler}{where}: {why}"
    return list(found.values())


def _tried(
    teacher: Pipeline, counts: Sequence[int], asked: Evaluation
) -> Iterator[tuple[tuple[str, int], str | None]]:
    """(sampler, steps) of each baseline, and why it cannot be."""
    own = {len(times) - 1 for times in teacher.times}
    each = calls_of(teacher, "ddim", 1, asked.scale)
    walks = [
        (sampler, most_steps(sampler, k // each)) for k in counts for sampler in asked.baselines
    ]
    for sampler, steps in dict.fromkeys(walks):
        if steps is None or (own and steps not in own and sampler not in WALKS):
            continue
        try:
            walkable(teacher, sampler, steps)
        except ConfigError as error:
            if sampler not in WALKS and not sampler.startswith(PREFIX):
                raise
            yield (sampler, steps), str(error)
        else:
            yield (sampler, steps), None


def gather(
    subject: Subject,
    judge: Judge,
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
    counts = counted(map(_steps, subject.students), asked)
    before = [] if of_teacher else _of_teacher(subject.teacher, counts, asked)
    after = _of_students(subject, counts)
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
    subject: Subject,
    of_teacher: Rows,
    setups: Sequence[Setup],
    judge: Judge,
    asked: Evaluation,
    progress: Progress,
) -> tuple[list[dict[str, Any]], list[tuple[str, Tensor]]]:
    """The teacher's rows and all others, and the images of teacher and students."""
    rows, full = list(of_teacher.rows), of_teacher.full
    held_out = None if subject.held_out is None else judge.features(subject.held_out)
    rows[0]["memorisation"] = memorised(full, held_out, judge)
    images, students = [(rows[0]["name"], full.images)], dict[int, Seen]()
    for one in setups:
        pipeline, _, steps = one.way
        seen = judge.see(*one.way, progress=progress)
        mine = row(one.who, one.name, one.way, seen, judge, asked.metrics, full)
        if one.who == "student":
            mine["drift"] = drifted(full, seen)
            mine["split"] = _split(subject, steps, asked)
            mine["memorisation"] = memorised(seen, held_out, judge)
            if subject.variants_of(steps):
                mine["compressed"] = as_trained(pipeline, one.name)
            images.append((_plural(steps), seen.images))
            students[steps] = seen
        elif one.variant:
            name = f"student, {_plural(steps)}"
            mine["compressed"] = compressed(one.variant, seen, students[steps], name, judge)
        else:
            same = students.get(steps) if pipeline.times else None
            mine |= {"network": one.network, "student_over_it": _over(judge, same, seen)}
        rows.append(mine)
    return rows, images


def _time(
    rows: list[dict[str, Any]], ways: Sequence[Way], judge: Judge, rounds: int, progress: Progress
) -> None:
    """Fill in what each row costs: all in turn."""
    timed = cost(ways, batches=TIMED, rounds=rounds, guidance=judge.guidance, progress=progress)
    for one, taken in zip(rows, timed, strict=True):
        one["cost"] = taken.to_json()
    same_work(rows)


def _how(
    subject: Subject, judge: Judge, asked: Evaluation, counts: Sequence[int]
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
        "left_out": _left_out(subject.teacher, counts, asked),
    }


def _over(judge: Judge, student: Seen | None, other: Seen) -> dict[str, float] | None:
    """The student's distance over that of another student of as many steps, in pairs of the same noise."""
    if student is None:
        return None
    return judge.ratio(student, other).to_json()


def counted(steps: Iterable[int], asked: Evaluation) -> list[int]:
    """The counts that are judged, the most steps first."""
    there = sorted(steps, reverse=True)
    if strange := sorted(set(asked.counts) - set(there)):
        raise ConfigError(
            f"no student takes {' or '.join(map(str, strange))} steps: there are students of "
            f"{', '.join(map(str, there)) or 'none'}"
        )
    return [k for k in there if not asked.counts or k in asked.counts]


def most_steps(sampler: str, count: int) -> int | None:
    """The most steps that cost this sampler at most `count` network calls; None if even one costs more."""
    for steps in range(count, 0, -1):
        if calls(sampler, steps) <= count:
            return steps
    return None


def _split(subject: Subject, count: int, asked: Evaluation) -> dict[str, Any] | None:
    """What the coarser grid costs by itself, and what the student failed to learn."""
    students = {_steps(s): s for s in subject.students}
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


def _steps(student: Pipeline) -> int:
    return min(len(times) - 1 for times in student.times)


def _plural(steps: int) -> str:
    return f"{steps} step{'s' if steps > 1 else ''}"
