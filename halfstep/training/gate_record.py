"""RUN/gate.json: what the gate of a run decided."""

from pathlib import Path
from typing import Any, Literal, TypedDict

from halfstep import storage

Verdict = Literal["passed", "broken", "undecided"]


class _Ratio(TypedDict):
    value: float
    low: float
    high: float


class Tried(TypedDict):
    """A student that the gate looked at."""

    stage: str
    steps: int
    ratio: _Ratio
    samples: int
    verdict: Verdict
    weights: str


class GateRecord(TypedDict):
    """What gate.json says."""

    tolerance: float
    until: int | None
    about: dict[str, Any]
    stopped: str | None
    best: str | None
    decisions: list[Tried]


def read_gate(file: Path) -> GateRecord:
    """What a gate wrote; `CheckpointError` where it is damaged."""
    return storage.read_json(file, GateRecord, mend="delete it, and the gate measures again")
