"""RUN/metrics.jsonl: a line every few updates, and a line for each finished stage."""

import json
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any, TypedDict

from halfstep import files, storage
from halfstep.config import JsonObject
from halfstep.errors import CheckpointError
from halfstep.schema import from_json, SchemaError, validated_partly


class RunCost(TypedDict):
    """Cost of finished stages; a forward counts 1, a forward and backward 3."""

    seconds: float
    forwards: float
    updates: int


class LoggedLoss(TypedDict):
    """Loss and learning rate of a logged update."""

    stage: str
    update: int
    loss: float
    rate: float


class MetricsLog:
    """The lines of a metrics.jsonl, read once, and again after each change."""

    def __init__(self, path: Path):
        self.path = path
        self._lines: list[JsonObject] | None = None

    @property
    def lines(self) -> list[JsonObject]:
        """All whole lines; a last line that a crash cut short is left out."""
        if self._lines is None:
            self._lines = self._read()
        return self._lines

    @property
    def cost(self) -> RunCost | None:
        """The sum over all finished stages; None before the first one is finished."""
        stages = [line for line in self.lines if "forwards" in line]
        if not stages:
            return None
        seconds, forwards, updates = (
            sum(line[key] for line in stages) for key in ("seconds", "forwards", "updates")
        )
        return {"seconds": seconds, "forwards": forwards, "updates": updates}

    @property
    def losses(self) -> list[LoggedLoss]:
        """Loss and learning rate of every logged update, over all stages."""
        return [
            LoggedLoss(
                stage=line["stage"], update=line["update"], loss=line["loss"], rate=line["rate"]
            )
            for line in self.lines
            if "loss" in line
        ]

    def add(self, line: JsonObject) -> None:
        """Append a line; a measure that is not finite is null there."""
        files.append(self.path, json.dumps(_finite(line)) + "\n")
        self._lines = None

    def has_stage(self, name: str) -> bool:
        """Whether there is a line for this finished stage."""
        return any(line["stage"] == name and "updates" in line for line in self.lines)

    def forget_after(self, stage: str, update: int) -> None:
        """Drop the lines of updates that are about to be done again."""
        remaining = [
            line
            for line in self.lines
            if line["stage"] != stage or ("updates" not in line and line["update"] <= update)
        ]
        if len(remaining) < len(self.lines):
            self._write(remaining)

    def mend(self) -> None:
        """Remove a last line that a crash cut short."""
        if self.path.exists() and self.path.read_bytes()[-1:] not in (b"", b"\n"):
            self._write(self.lines)

    def _write(self, lines: list[JsonObject]) -> None:
        storage.write_text(self.path, "".join(json.dumps(line) + "\n" for line in lines))
        self._lines = None

    def _read(self) -> list[JsonObject]:
        if not self.path.exists():
            return []
        with storage.reading(self.path):
            *whole, _ = self.path.read_bytes().split(b"\n")
        return [_line(line, f"line {k} of '{self.path}'") for k, line in enumerate(whole, start=1)]


class _Update(LoggedLoss):
    """The line of an update; it also has the measures of the stage's objective."""

    norm: float


class _FinishedStage(RunCost):
    """The line of a finished stage."""

    stage: str


def _line(text: bytes, source: str) -> JsonObject:
    try:
        content = from_json(text, JsonObject, source)
        return validated_partly(content, _FinishedStage if "updates" in content else _Update)
    except SchemaError as wrong:
        raise CheckpointError(f"{source} is damaged: {wrong}; mend or remove the line") from None
    except CheckpointError as damaged:
        raise CheckpointError(f"{damaged}; mend or remove the line") from None


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not isfinite(value) else value
