"""The evidence of a run: every number of RUN/report.json and every picture of RUN/report.npz.

Teacher at full steps, undistilled teacher at not more network calls, and every student: the same noise,
the same features, the same number of samples, intervals on all of it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from halfstep.batch import Cond
from halfstep.data import Data
from halfstep.errors import ConfigError, unknown
from halfstep.evaluation.compressed import as_trained, compressed_row, same_work, Variant
from halfstep.evaluation.cost import calls_of, cost, Way
from halfstep.evaluation.distance_intervals import raw_frechet_ratio
from halfstep.evaluation.fidelity import grid_cost, learning_error
from halfstep.evaluation.judge import Judge, Seen
from halfstep.evaluation.rows import drifted, memorised, METRICS, pictures, row
from halfstep.evaluation.statistics import fingerprint
from halfstep.kinds import at_least, at_most, Count, hold_to_kinds, NotNegative, Seed
from halfstep.pipeline import Pipeline
from halfstep.pipeline.walks import check_walk
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

    def steps(self, asked: Evaluation, batch: int = 256) -> int:
        """How often `Judge.progress` will be called."""
        own = counted(map(_steps, self.students), asked)
        walks = _walks(self.teacher, own, asked)
        own = [one for count in own for one in [count] * (1 + len(self.variants_of(count)))]
        total = asked.full + sum(own) + sum(steps for _, steps in walks)
        total += sum(steps for _, _, steps in self.others)
        ways = 1 + len(walks) + len(own) + len(self.others)
        return total * -(-asked.samples // batch) + ways * asked.cost_rounds * len(TIMED)

    def left_out(self, asked: Evaluation) -> list[str]:
        """Which baselines will not be sampled, and why, a sentence each."""
        return _left_out(self.teacher, counted(map(_steps, self.students), asked), asked)


@dataclass
class Rows:
    """Rows of the table, what was sampled for each, and what drew it."""

    rows: list[dict[str, Any]]
    ways: list[tuple[Pipeline, str, int]]
    full: Seen
    """The teacher's samples at full steps."""


def teacher_rows(teacher: Pipeline, counts: Sequence[int], judge: Judge, asked: Evaluation) -> Rows:
    """The teacher at full steps, and with every baseline at not more calls than each count.

    Needs no student, so it can be done while they are trained.
    """
    walkable(teacher, asked.full_sampler, asked.full)
    sampler = "" if asked.full_sampler == "ddim" else f"{asked.full_sampler}, "
    way = teacher, asked.full_sampler, asked.full
    full = judge.see(*way)
    name = f"teacher, {sampler}{_plural(asked.full)}"
    found = Rows([row("teacher", name, way, full, judge, asked.metrics)], [way], full)
    for sampler, steps in _walks(teacher, counts, asked):
        way = teacher, sampler, steps
        seen = judge.see(*way)
        name = f"teacher, {sampler}, {_plural(steps)}"
        found.rows.append(row("baseline", name, way, seen, judge, asked.metrics, full))
        found.ways.append(way)
    return found


def walkable(teacher: Pipeline, sampler: str, steps: int) -> None:
    """Raises `ConfigError` where the grid or the schedule does not take this sampler; asks no network."""
    check_walk(sampler, teacher.grid(steps, sampler), teacher.denoiser.schedule)


def _walks(teacher: Pipeline, counts: Sequence[int], asked: Evaluation) -> list[tuple[str, int]]:
    """The baselines, once where one serves two counts; a teacher that is a student takes its own steps."""
    return [way for way, refused in _tried(teacher, counts, asked) if refused is None]


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
    subject: Subject, judge: Judge, asked: Evaluation, *, of_teacher: Rows | None = None
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """`measure` and `rows` of report.json, and the pictures of report.npz.

    of_teacher  `teacher_rows`, where they were found before
    """
    students = {_steps(s): s for s in subject.students}
    counts = counted(students, asked)
    found = of_teacher or teacher_rows(subject.teacher, counts, judge, asked)
    rows, ways, full = list(found.rows), list(found.ways), found.full
    held_out = None if subject.held_out is None else judge.features(subject.held_out)
    rows[0]["memorisation"] = memorised(full, held_out, judge)
    images, features = [(rows[0]["name"], full.images)], dict[int, Tensor]()
    for count in counts:
        way = students[count], students[count].own_sampler, count
        seen = judge.see(*way)
        name = f"student, {_plural(count)}"
        mine = row("student", name, way, seen, judge, asked.metrics, full)
        mine["drift"] = drifted(full, seen)
        mine["split"] = _split(subject, students, count, asked)
        mine["memorisation"] = memorised(seen, held_out, judge)
        rows.append(mine)
        ways.append(way)
        images.append((_plural(count), seen.images))
        features[count] = seen.features
        variants = subject.variants_of(count)
        if variants:
            mine["compressed"] = as_trained(students[count], name)
        for variant in variants:
            rows.append(compressed_row(variant, seen, name, judge, asked.metrics, full))
            ways.append(variant.way)
    for name, pipeline, steps in subject.others:
        way = pipeline, pipeline.own_sampler, steps
        seen = judge.see(*way)
        one = row("other", f"{name}, {_plural(steps)}", way, seen, judge, asked.metrics, full)
        same = features.get(steps) if pipeline.times else None
        rows.append(one | {"network": name, "student_over_it": _over(judge, same, seen.features)})
        ways.append(way)
    if asked.cost_rounds:
        _time(rows, ways, judge, asked.cost_rounds)
    measure = _how(subject, judge, asked, counts)
    return {"format": FORMAT, "measure": measure, "rows": rows}, pictures(images, asked.shown)


def _time(rows: list[dict[str, Any]], ways: Sequence[Way], judge: Judge, rounds: int) -> None:
    """Fill in what each row costs: all in turn."""
    timed = cost(
        ways, batches=TIMED, rounds=rounds, guidance=judge.guidance, progress=judge.progress
    )
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


def _over(judge: Judge, student: Tensor | None, other: Tensor) -> dict[str, float] | None:
    """The student's distance over that of another student of as many steps, in pairs of the same noise."""
    if student is None:
        return None
    return raw_frechet_ratio(judge.real_features, student, other, block=judge.n).to_json()


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


def _split(
    subject: Subject, students: Mapping[int, Pipeline], count: int, asked: Evaluation
) -> dict[str, Any] | None:
    """What the coarser grid costs by itself, and what the student failed to learn."""
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
