"""RUN/gate.json: what the gate of a run decided."""

from pathlib import Path
from typing import Literal, NotRequired, TypedDict

from halfstep import storage
from halfstep.config import JsonObject

Verdict = Literal["passed", "broken", "undecided"]


class _Ratio(TypedDict):
    value: float
    low: float
    high: float


class DecisionRecord(TypedDict):
    """The gate's decision on a student."""

    stage: str
    steps: int
    ratio: _Ratio
    samples: int
    verdict: Verdict
    weights: str


class GateRecord(TypedDict):
    """Content of gate.json.

    best        the stage of the best student
    best_steps  its steps; runs of before it was recorded lack it
    """

    tolerance: float
    until: int | None
    about: JsonObject
    stopped: str | None
    best: str | None
    best_steps: NotRequired[int | None]
    decisions: list[DecisionRecord]


def read_gate(file: Path) -> GateRecord:
    """Read a gate.json; `CheckpointError` where it is damaged."""
    return storage.read_json(file, GateRecord, mend="delete it, and the gate measures again")
