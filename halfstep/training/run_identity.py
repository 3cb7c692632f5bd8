"""The record of a run in run.json: its options and environment, compared when the run goes on."""

import platform
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np
import torch

from halfstep.config import JsonObject
from halfstep.errors import ConfigError
from halfstep.methods.stages import StagePlan, teacher_times
from halfstep.training.option_changes import CHANGEABLE, changeable, OptionChange
from halfstep.version import __version__

EXTENDABLE = ("stop", "updates")
"""Options that --extend may raise (or halve further)."""
ROUNDING = ("micro_batch_size",)
"""Options that may change at any time, as when memory runs out: they only change the rounding of sums."""
Environment = dict[str, str | int | None]
"""Versions, device and threads."""


class RecordedStage(TypedDict):
    """A planned stage; `steps` is None for a student of every time.

    forwards       cost of a sample's update; runs of before it was recorded lack it
    once           forwards whatever the updates, as of kept walks; runs of before lack it, too
    teacher_steps  those on the teacher's grid in this stage, None without one; runs of before lack it, too
    """

    name: str
    steps: int | None
    updates: int
    forwards: NotRequired[float]
    once: NotRequired[int]
    teacher_steps: NotRequired[int | None]


class RecordedPlan(TypedDict):
    """The plan of a run's method; both are empty for a run of another kind.

    teacher_times  the grid that the first halved student's teacher is sampled on
    """

    stages: list[RecordedStage]
    teacher_times: list[float]


class RunRequest(TypedDict):
    """A run as it is asked for: the command, its resolved options and the plan of its method."""

    command: str
    options: JsonObject
    plan: RecordedPlan


class RunRecord(RunRequest):
    """Content of run.json.

    options          as resolved; of `CHANGEABLE` ones the values that the run began with
    id               stands in the run's stages and checkpoints, and in no other run's
    changes          all changes since the run began, in words
    changed_options  `CHANGEABLE` options that changed, with the updates from which on
    """

    id: str
    argv: list[str]
    environment: Environment
    changes: list[str]
    changed_options: list[OptionChange]


def plan_record(plan: Sequence[StagePlan]) -> RecordedPlan:
    """The plan as run.json has it."""
    return {
        "stages": [
            {
                "name": s.name,
                "steps": s.steps,
                "updates": s.updates,
                "forwards": s.forwards,
                "once": s.once,
                "teacher_steps": len(s.teacher_times) - 1 if s.teacher_times else None,
            }
            for s in plan
        ],
        "teacher_times": list(teacher_times(plan)),
    }


def new_record(
    folder: Path, before: RunRecord | None, request: RunRequest, now: Environment, *, extend: bool
) -> tuple[RunRecord, list[str]]:
    """The new content of run.json, `before` itself where nothing changed, and the changes in words.

    before  content of run.json; None for a new run
    now     `environment`
    """
    if before is None:
        return _record(request, uuid.uuid4().hex, now, [], []), []
    free, extended = compare(folder, before, request, extend=extend)
    notes = [*free, *_environment_changes(before["environment"], now)]
    record = before
    if notes or extended:
        options = {**request["options"], **changeable(before["options"])}
        changes = [*before["changes"], *notes, *extended]
        request = {**request, "options": options}
        record = _record(request, before["id"], now, changes, before["changed_options"])
    return record, [f"{note}: from here on not the same to the bit" for note in notes]


def _record(
    request: RunRequest,
    id: str,
    now: Environment,
    changes: list[str],
    changed_options: list[OptionChange],
) -> RunRecord:
    return {
        **request, "id": id, "argv": sys.argv, "environment": now, "changes": changes,
        "changed_options": changed_options,
    }  # fmt: skip


def compare(
    folder: Path, before: RunRecord, request: RunRequest, *, extend: bool
) -> tuple[list[str], list[str]]:
    """Differences that are allowed, in words, and those that `extend` allows.

    `ConfigError` where the run in `folder` was begun with another command or other options.
    """
    if before["command"] != request["command"]:
        raise ConfigError(
            f"'{folder}' holds a run of '{before['command']}', not of '{request['command']}': "
            "choose another --out"
        )
    old, new = dict(dotted(before["options"])), dict(dotted(request["options"]))
    free, extended = list[str](), list[str]()
    for name in sorted(old.keys() | new.keys()):
        was, now = old.get(name), new.get(name)
        if was == now or name in CHANGEABLE:
            continue
        last = name.rpartition(".")[-1]
        extends = last in EXTENDABLE and _extends(last, was, now)
        if name in ROUNDING:
            free.append(f"{name} was {was}, now {now}")
        elif extends and extend:
            extended.append(f"{name} was {was}, now {now}")
        else:
            hint = "add --extend, or " if extends else ""
            raise ConfigError(
                f"'{folder}' was made with {name} = {was}, now it is {now}: {hint}choose another "
                "--out, or delete the folder"
            )
    return free, extended


def dotted(options: JsonObject, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value with its full name: pipeline.schedule.name."""
    for name, value in options.items():
        if isinstance(value, dict):
            yield from dotted(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _extends(name: str, was: Any, now: Any) -> bool:
    """Whether the new value only adds updates or halvings to those of the old one."""
    olds, news = (value if isinstance(value, list) else [value] for value in (was, now))
    if not all(isinstance(value, int) for value in (*olds, *news)):
        return False
    if name == "stop":
        return bool(news < olds)
    return all(new >= old for old, new in zip(olds, news, strict=False))


def _environment_changes(before: Environment, now: Environment) -> list[str]:
    return [
        f"{name} was {before.get(name)}, now {now[name]}"
        for name in now
        if name != "commit" and before.get(name) != now[name]
    ]


def environment(device: str, processes: int = 1) -> Environment:
    """Everything besides the options that the bits of a result depend on."""
    return {
        "halfstep": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
        "processes": processes,
    }


def _commit() -> str | None:
    package = str(Path(__file__).parents[1])
    try:
        result = subprocess.run(
            ["git", "-C", package, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None
