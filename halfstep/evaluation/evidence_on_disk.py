"""RUN/report.json, read again: what `halfstep evaluate` writes, and nothing else."""

from pathlib import Path
from sys import float_info
from typing import Any, Literal, NotRequired, TypedDict

from halfstep import storage
from halfstep.errors import CheckpointError
from halfstep.evaluation.evidence import FORMAT
from halfstep.training.gate_record import GateRecord

MEND = "write halfstep evaluate again"


class _Interval(TypedDict):
    value: float
    low: float
    high: float


class _Distances(TypedDict):
    frechet_distance: _Interval
    frechet_unbiased: NotRequired[_Interval]
    kernel_distance: NotRequired[_Interval]
    inception_score: NotRequired[_Interval]
    precision: NotRequired[_Interval]
    recall: NotRequired[_Interval]


class _Fidelity(TypedDict):
    rmse: _Interval
    psnr: _Interval
    feature_rmse: _Interval


class _Split(TypedDict):
    grid: _Interval
    learning: _Interval


class _Memorisation(TypedDict):
    train: _Interval
    held_out: _Interval
    ratio: _Interval
    copies: _Interval
    flag: str | None


class _Drift(TypedDict):
    measure: str
    change: _Interval
    limit: float
    alarm: str | None


_Seconds = TypedDict("_Seconds", {"1": float, "64": float})


class _Cost(TypedDict):
    calls: int
    seconds_per_sample: _Seconds
    peak_bytes: int | None
    parameters: int
    multiply_adds: int


class _Compressed(TypedDict):
    kind: str
    of: str
    bytes: int
    zeroed: float
    rmse: _Interval | None
    ratio: _Interval | None


class _Measured(TypedDict):
    """What a row of any network says."""

    name: str
    sampler: str
    steps: int
    calls: int
    distances: _Distances
    ratio: _Interval | None
    fidelity: _Fidelity | None
    split: _Split | None
    memorisation: _Memorisation | None
    drift: list[_Drift] | None
    cost: _Cost | None


class _Own(_Measured):
    who: Literal["teacher", "baseline", "student"]
    compressed: NotRequired[_Compressed]


class _Smaller(_Measured):
    who: Literal["compressed"]
    compressed: _Compressed


class _Other(_Measured):
    who: Literal["other"]
    network: str
    student_over_it: _Interval | None


class _Judged(TypedDict):
    """How samples were measured."""

    features: str
    preprocessing: str
    digest: str
    data: str
    samples: int
    real: int
    real_few: int
    seed: int
    guidance: float
    floor: float
    left_out: list[str]
    machine: str


class _Reconstructed(TypedDict):
    data: str
    samples: int
    machine: str


class _GuidedRow(TypedDict):
    guidance: float
    who: Literal["teacher", "student"]
    name: str
    sampler: str
    steps: int
    calls: int
    distance: _Interval
    times_floor: _Interval | None
    rmse: _Interval | None
    to_data: float
    inception_score: float | None


class _Reference(TypedDict):
    samples: int
    steps: int
    sampler: str
    seed: int


class _Guided(TypedDict):
    reference: _Reference
    scales: list[float]
    rows: list[_GuidedRow]


class _Encoder(TypedDict):
    name: str
    who: Literal["teacher", "baseline", "student"]
    steps: int
    full: _Interval
    same: _Interval | None


class _Reconstruction(TypedDict):
    images: int
    held_out: bool
    full: int
    rows: list[_Encoder]


class _Made(TypedDict):
    command: str
    halfstep: str | None
    torch: str | None
    commit: str | None
    machine: str


class _Spent(TypedDict):
    seconds: float
    forwards: float
    updates: float


class _Training(TypedDict):
    teacher: NotRequired[_Spent | None]
    halvings: NotRequired[_Spent | None]


class _Run(TypedDict):
    folder: str
    config: dict[str, Any]
    gate: NotRequired[GateRecord | None]
    cost: NotRequired[_Training]


class _Update(TypedDict):
    stage: str
    update: int
    loss: float
    rate: float


class _Evidence(TypedDict):
    format: int
    made: _Made
    run: _Run
    training: list[_Update]
    verdict: str


class Samples(_Evidence):
    """Of students that sample."""

    measure: _Judged
    rows: list[_Own | _Smaller | _Other]
    guided: NotRequired[_Guided]


class Encoders(_Evidence):
    """Of students that encode."""

    measure: _Reconstructed
    rows: tuple[()]
    reconstruction: _Reconstruction


_EITHER: Any = Samples | Encoders
_COUNTS = ("calls", "steps", "update", "samples", "parameters")
_ABOVE_0 = ("frechet_distance.value", "to_data", "seconds_per_sample.1", "seconds_per_sample.64")
_LEAST = {
    **dict.fromkeys(_COUNTS, 1),
    **dict.fromkeys(_ABOVE_0, float_info.min),
    "multiply_adds": 0,
}
"""Of what is drawn on logarithmic axes."""


def read_evidence_of(path: Path) -> dict[str, Any]:
    """`CheckpointError` where it is damaged, or was changed by hand."""
    found: dict[str, Any] = storage.read_json(path, _EITHER, format=FORMAT, mend=MEND)
    if not found["rows"] and "reconstruction" not in found:
        raise CheckpointError(f"'{path}' is damaged: it has no rows; {MEND}")
    for part in ("measure", "rows", "guided", "training", "reconstruction"):
        _check_drawn(found.get(part, {}), part, path)
    return found


def _check_drawn(value: Any, name: str, path: Path) -> None:
    """Refuse numbers that have no place on their axis."""
    least = next((_LEAST[end] for end in _LEAST if name.endswith(f".{end}")), None)
    if least is not None and value < least:
        raise CheckpointError(f"'{path}' is damaged: {name} is too small, got {value}; {MEND}")
    if isinstance(value, dict | list):
        for key, each in value.items() if isinstance(value, dict) else enumerate(value):
            _check_drawn(each, f"{name}.{key}", path)
