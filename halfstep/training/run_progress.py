"""How far a run is, and how long it takes: the cost of its stages, the speed so far."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Self

from halfstep import storage
from halfstep.config import JsonObject
from halfstep.errors import CheckpointError
from halfstep.methods.stages import StagePlan
from halfstep.training.run_folder import RunFolder
from halfstep.training.run_identity import plan_record, RecordedStage


@dataclass(frozen=True)
class Work:
    """The work of a stage.

    updates  all of them, of those that the plan has
    done     updates that are done
    price    cost of an update, in forwards of a batch
    once     cost before the first update, as of kept walks
    """

    updates: int
    done: int
    price: float
    once: float = 0.0

    @property
    def cost(self) -> float:
        """The cost of the stage in forwards of a batch."""
        return self.once + self.updates * self.price

    @property
    def spent(self) -> float:
        """The cost of what is done of it."""
        return (self.once if self.done else 0.0) + min(self.done, self.updates) * self.price


@dataclass(frozen=True)
class RunProgress:
    """How far a run is.

    done          share of its cost that is done, in [0, 1]
    finished      whether all of its stages are, or its gate has ended it
    seconds_left  estimated from the seconds of its last stage; None where that has no time yet
    """

    done: float
    finished: bool
    seconds_left: float | None

    @classmethod
    def of(cls, run: RunFolder, plan: Sequence[StagePlan] = ()) -> Self:
        """Read from the files of a run; `CheckpointError` where one is damaged.

        plan  the stages that the run is to have, where they are more than it was begun with
        """
        stages = plan_record(plan)["stages"] or _planned(run)
        work = [_work(run, stage) for stage in stages]
        is_ended = run.gate is not None and run.gate["stopped"] is not None
        if is_ended or (work and all(stage.done >= stage.updates for stage in work)):
            return cls(1.0, True, 0.0)
        speed = _speed(run, stages)
        left = seconds_left(work, speed) if speed is not None else None
        return cls(share_done(work), False, left)


def share_done(stages: Sequence[Work]) -> float:
    """The share of the cost that is done; 0 for stages without updates."""
    whole = sum(stage.cost for stage in stages)
    return sum(stage.spent for stage in stages) / whole if whole else 0.0


def seconds_left(stages: Sequence[Work], seconds: float) -> float:
    """Seconds that the work left takes.

    seconds  of a forward of a batch
    """
    return sum(stage.cost - stage.spent for stage in stages) * seconds


def _planned(run: RunFolder) -> list[RecordedStage]:
    """The stages of the run's plan; of a run without one its only stage, which has all updates."""
    if stages := run.about["plan"]["stages"]:
        return stages
    updates = run.options.get("updates")
    if type(updates) is not int:
        return []
    names = [line["stage"] for line in run.metrics] or [path.name for path in run.stages] or [""]
    return [{"name": names[-1], "steps": None, "updates": updates}]


def _work(run: RunFolder, stage: RecordedStage) -> Work:
    name = stage["name"]
    if name and (record := run.finished(name)) is not None:
        return _done(run, stage, record["updates"])
    logged = [line["update"] for line in run.metrics if line["stage"] == name and "update" in line]
    return _done(run, stage, max(logged, default=0))


def _done(run: RunFolder, stage: RecordedStage, done: int) -> Work:
    """A stage with so many updates done."""
    once = stage.get("once", 0) / run.options.get("batch_size", 1)
    return Work(stage["updates"], done, stage.get("forwards", 1), once)


def _speed(run: RunFolder, stages: Sequence[RecordedStage]) -> float | None:
    """Seconds of a forward of a batch, by the newest checkpoint or the last finished stage."""
    by_name = {stage["name"]: stage for stage in stages}

    def speed(name: str, updates: int, seconds: float) -> float:
        stage = by_name.get(name, {"name": name, "steps": None, "updates": updates})
        work = _done(run, {**stage, "updates": updates}, updates)
        # Walks that another run has made took no time of this one: the log's pace is of updates alone.
        if work.once and (pace := _pace(run, name)):
            return float(run.options.get("batch_size", 1) / (pace * work.price))
        return seconds / work.cost

    for path in sorted(run.checkpoints.glob("[0-9]*.json"), reverse=True):
        try:
            about = storage.read_about(path.with_suffix(""), JsonObject)
        except CheckpointError:  # removed meanwhile, or damaged, which the run itself tells
            continue
        if about["update"] and about["seconds"]:
            return speed(about["name"], about["update"], about["seconds"])
    for line in run.metrics[::-1]:
        if line.get("updates") and line["seconds"]:
            return speed(line["stage"], line["updates"], line["seconds"])
    return None


def _pace(run: RunFolder, name: str) -> float | None:
    """Samples a second of a stage's updates, as logged; None before the first."""
    lines = [line for line in run.metrics if line["stage"] == name]
    paces = [line["samples_per_second"] for line in lines if line.get("samples_per_second")]
    return median(paces) if paces else None
