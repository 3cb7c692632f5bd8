"""How far a run is, and how long it takes: the cost of its stages, the speed so far."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from halfstep import storage
from halfstep.config import JsonObject
from halfstep.errors import CheckpointError
from halfstep.methods.base import StagePlan
from halfstep.training.run_folder import RunFolder
from halfstep.training.run_identity import plan_record, RecordedStage


@dataclass(frozen=True)
class Work:
    """The work of a stage.

    updates  all of them, of those that the plan has
    done     updates that are done
    price    cost of an update, in forwards of a sample
    """

    updates: int
    done: int
    price: float


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
        speed = _speed(run)
        left = seconds_left(work, *speed) if speed is not None else None
        return cls(share_done(work), False, left)


def share_done(stages: Sequence[Work]) -> float:
    """The share of the cost that is done; 0 for stages without updates."""
    whole = sum(stage.updates * stage.price for stage in stages)
    done = sum(min(stage.done, stage.updates) * stage.price for stage in stages)
    return done / whole if whole else 0.0


def seconds_left(stages: Sequence[Work], seconds: float, price: float) -> float:
    """Seconds that the updates left take.

    seconds  of an update that costs `price` forwards of a sample
    """
    left = sum(max(stage.updates - stage.done, 0) * stage.price for stage in stages)
    return left * seconds / price


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
    name, price = stage["name"], stage.get("forwards", 1)
    if name and (record := run.finished(name)) is not None:
        return Work(stage["updates"], record["updates"], price)
    logged = [line["update"] for line in run.metrics if line["stage"] == name and "update" in line]
    return Work(stage["updates"], max(logged, default=0), price)


def _speed(run: RunFolder) -> tuple[float, float] | None:
    """Seconds and price of an update, by the newest checkpoint or the last finished stage."""
    prices = {stage["name"]: float(stage.get("forwards", 1)) for stage in _planned(run)}
    for path in sorted(run.checkpoints.glob("[0-9]*.json"), reverse=True):
        try:
            about = storage.read_about(path.with_suffix(""), JsonObject)
        except CheckpointError:  # removed meanwhile, or damaged, which the run itself tells
            continue
        if about["update"] and about["seconds"]:
            return about["seconds"] / about["update"], prices.get(about["name"], 1.0)
    for line in run.metrics[::-1]:
        if line.get("updates") and line["seconds"]:
            return line["seconds"] / line["updates"], prices.get(line["stage"], 1.0)
    return None
