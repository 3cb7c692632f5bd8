"""The evidence of a run: every number of RUN/report.json and every picture of RUN/report.npz.

Teacher at full steps, undistilled teacher at not more network calls, and every student: the same noise,
the same features, the same number of samples, intervals on all of it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from halfstep.batch import Cond
from halfstep.data import Data
from halfstep.errors import ConfigError, unknown
from halfstep.evaluation.cost import cost
from halfstep.evaluation.distance_intervals import (
    frechet_interval,
    kernel_interval,
    precision_recall_intervals,
    raw_frechet_interval,
)
from halfstep.evaluation.distances import inception_score
from halfstep.evaluation.drift import drift
from halfstep.evaluation.fidelity import fidelity, grid_cost, learning_error, worst_pairs
from halfstep.evaluation.intervals import basic_bootstrap, Interval
from halfstep.evaluation.judge import Judge, Seen
from halfstep.evaluation.memorisation import memorisation
from halfstep.evaluation.statistics import fingerprint
from halfstep.pipeline import Pipeline
from halfstep.samplers import calls, PREFIX, STEPS
from halfstep.timegrids import Times

FORMAT = 1
TIMED = (1, 64)
"""Batch sizes at which seconds are measured."""
ROWS_A_FEATURE = 10
"""Samples a feature below which the interval of the true Fréchet distance means nothing."""
METRICS = ("frechet", "kernel", "inception", "precision-recall")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What is measured, and how closely."""

    samples: int = 2000
    """Samples per score, of teacher and students alike."""
    noise: int = 0
    """Seed of the noise that every row starts from."""
    full: int = 64
    """Steps of the teacher that all is compared with; 0 is the gate's, or 64 where there was none."""
    counts: tuple[int, ...] = ()
    """Steps of the students to judge; all there are by default."""
    baselines: tuple[str, ...] = ("ddim", "heun", "dpmpp-2m")
    """Samplers of the undistilled teacher, at not more calls; diffusers:NAME is one of diffusers'."""
    metrics: tuple[str, ...] = METRICS
    """Distances of each row: frechet is always there, inception where the features know classes."""
    shown: int = 12
    """Seeds in the grid of samples."""
    split_samples: int = 500
    """Samples for the two parts of a student's error; 0 leaves them out."""
    cost_rounds: int = 5
    """Rounds of timing, all rows in turn; 0 leaves cost out."""

    def __post_init__(self) -> None:
        least = {"samples": 8, "full": 0, "shown": 1, "split_samples": 0, "cost_rounds": 0}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ConfigError(f"{name} must be at least {value}, got {getattr(self, name)}")
        if self.split_samples == 1:
            raise ConfigError("one sample has no interval: write split_samples=2 or more, or 0")
        for name in self.metrics:
            if name not in METRICS:
                raise unknown("metric", name, METRICS)
        for name in self.baselines:
            if not name.startswith(PREFIX) and name not in (known := [*STEPS, "ancestral"]):
                raise unknown("sampler", name, [*known, f"{PREFIX}NAME"])


@dataclass(frozen=True)
class Subject:
    """What is judged: a teacher, the students made from it, and its data.

    students  the one of the most steps first, each made from the one before
    times     the teacher's grid, which the first student halves
    held_out  data that nobody was trained on; None leaves memorisation out
    """

    teacher: Pipeline
    students: Sequence[Pipeline]
    data: Data
    times: Times = ()
    held_out: Tensor | None = None

    def steps(self, asked: Evaluation, batch: int = 256) -> int:
        """How often `Judge.progress` will be called."""
        own = counted(map(_steps, self.students), asked)
        walks = _walks(self.teacher, own, asked)
        total = asked.full + sum(own) + sum(steps for _, steps in walks)
        ways = 1 + len(walks) + len(own)
        return total * -(-asked.samples // batch) + ways * asked.cost_rounds * len(TIMED)


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
    full = judge.see(teacher, "ddim", asked.full)
    name = f"teacher, {_plural(asked.full)}"
    found = Rows(
        [_row("teacher", name, "ddim", asked.full, full, judge, asked)],
        [(teacher, "ddim", asked.full)],
        full,
    )
    for sampler, steps in _walks(teacher, counts, asked):
        seen = judge.see(teacher, sampler, steps)
        name = f"teacher, {sampler}, {_plural(steps)}"
        found.rows.append(_row("baseline", name, sampler, steps, seen, judge, asked, full))
        found.ways.append((teacher, sampler, steps))
    return found


def _walks(teacher: Pipeline, counts: Sequence[int], asked: Evaluation) -> list[tuple[str, int]]:
    """The baselines, once where one serves two counts; a teacher that is a student takes its own steps."""
    own = {len(times) - 1 for times in teacher.times}
    walks = [(sampler, most_steps(sampler, k)) for k in counts for sampler in asked.baselines]
    return [
        (sampler, steps)
        for sampler, steps in dict.fromkeys(walks)
        if steps is not None and (not own or steps in own)
    ]


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
    _memorised(rows[0], full, held_out, judge)
    images = [(rows[0]["name"], full.images)]
    for count in counts:
        seen = judge.see(students[count], "ddim", count)
        row = _row("student", f"student, {_plural(count)}", "ddim", count, seen, judge, asked, full)
        row["drift"] = _drift(full, seen)
        row["split"] = _split(subject, students, count, asked)
        _memorised(row, seen, held_out, judge)
        rows.append(row)
        ways.append((students[count], "ddim", count))
        images.append((_plural(count), seen.images))
    if asked.cost_rounds:
        timed = cost(ways, batches=TIMED, rounds=asked.cost_rounds, progress=judge.progress)
        for row, taken in zip(rows, timed, strict=True):
            row["cost"] = taken.to_json()
    measure = {
        "features": judge.features.name,
        "preprocessing": judge.features.preprocessing,
        "digest": judge.features.digest,
        "data": fingerprint(subject.data),
        "samples": asked.samples,
        "real": len(judge.real),
        "real_few": len(judge.real_few),
        "seed": asked.noise,
        "floor": judge.floor,
    }
    return {"format": FORMAT, "measure": measure, "rows": rows}, _pictures(images, asked.shown)


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


def _row(
    who: str,
    name: str,
    sampler: str,
    steps: int,
    seen: Seen,
    judge: Judge,
    asked: Evaluation,
    full: Seen | None = None,
) -> dict[str, Any]:
    """One row of the table; what only students have is filled in later."""
    return {
        "who": who,
        "name": name,
        "sampler": sampler,
        "steps": steps,
        "calls": calls(sampler, steps),
        "distances": _distances(seen, judge, asked),
        "ratio": None if full is None else judge.ratio(seen, full).to_json(),
        "fidelity": None if full is None else _fidelity(full, seen),
        "split": None,
        "memorisation": None,
        "drift": None,
        "cost": None,
    }


def _distances(seen: Seen, judge: Judge, asked: Evaluation) -> dict[str, Any]:
    real, few, fake = judge.real_features, judge.real_few, seen.features
    found: dict[str, Interval] = {"frechet_distance": raw_frechet_interval(real, fake)}
    if min(len(real), len(fake)) >= ROWS_A_FEATURE * real.shape[1]:
        truth = frechet_interval(real, fake)
        found["frechet_unbiased"] = replace(truth, value=(truth.low + truth.high) / 2)
    if "kernel" in asked.metrics:
        found["kernel_distance"] = kernel_interval(few, fake)
    if "inception" in asked.metrics and judge.features.head is not None:
        chances = judge.features.probabilities(fake)
        found["inception_score"] = basic_bootstrap(inception_score, chances)
    if "precision-recall" in asked.metrics:
        found["precision"], found["recall"] = precision_recall_intervals(few, fake)
    return {name: value.to_json() for name, value in found.items()}


def _fidelity(full: Seen, seen: Seen) -> dict[str, Any]:
    return fidelity(full.images, seen.images, full.features, seen.features).to_json()


def _drift(full: Seen, seen: Seen) -> list[dict[str, object]] | None:
    """Of images large and many enough; points have no colours."""
    if seen.images.ndim != 4 or min(seen.images.shape[2:]) < 3 or len(seen) < 8:
        return None
    return [one.to_json() for one in drift(full.images, seen.images)]


def _memorised(row: dict[str, Any], seen: Seen, held_out: Tensor | None, judge: Judge) -> None:
    """By distances in feature space."""
    if held_out is not None:
        row["memorisation"] = memorisation(seen.features, judge.real_features, held_out).to_json()


def _split(
    subject: Subject, students: Mapping[int, Pipeline], count: int, asked: Evaluation
) -> dict[str, Any] | None:
    """What the coarser grid costs by itself, and what the student failed to learn."""
    before = students.get(2 * count)
    finer = before.times[0] if before is not None else subject.times
    if not asked.split_samples or len(finer) - 1 != 2 * count:
        return None
    if tuple(subject.data.shape) != tuple(subject.teacher.shape):
        return None  # images that a model of latents is judged by
    n = max(asked.split_samples, count)  # every time of the student's is visited
    batch = subject.data.batch(torch.arange(n) % len(subject.data))
    maker = before.denoiser if before is not None else subject.teacher.denoiser
    said = batch.cond or Cond()
    cond = Cond(
        said.label if subject.teacher.classes else None,
        said.context if subject.teacher.empty is not None else None,
    )
    grid = grid_cost(subject.teacher, finer, n=asked.split_samples, seed=asked.noise)
    learning = learning_error(students[count].denoiser, maker, finer, batch.x0, cond=cond)
    return {"grid": grid.to_json(), "learning": learning.to_json()}


def _pictures(images: list[tuple[str, Tensor]], shown: int) -> dict[str, NDArray[Any]]:
    """The same seeds down the columns, and the worst pairs of the student of the fewest steps."""
    if images[0][1].ndim != 4:
        return {}
    found = {
        "grid": np.stack([_bytes(x[:shown]) for _, x in images]),
        "grid_labels": np.array([label for label, _ in images]),
    }
    if len(images) > 1:
        (_, full), (label, last) = images[0], images[-1]
        worst = worst_pairs(full, last, count=min(6, len(full)))
        found["worst"] = np.stack([_bytes(full[worst]), _bytes(last[worst])], 1)
        found["worst_labels"] = np.array([f"{label}, seed {k}" for k in worst])
    return found


def _bytes(images: Tensor) -> NDArray[Any]:
    """[N, C, H, W] in [-1, 1] to uint8 [N, H, W, C]."""
    levels: NDArray[Any] = ((images + 1) * 127.5).round().clamp(0, 255).byte().numpy()
    return levels.transpose(0, 2, 3, 1)


def _steps(student: Pipeline) -> int:
    return min(len(times) - 1 for times in student.times)


def _plural(steps: int) -> str:
    return f"{steps} step{'s' if steps > 1 else ''}"
