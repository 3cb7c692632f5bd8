"""The report of a run: RUN/report.json and RUN/report.npz as typed values, with one reader and one writer."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from sys import float_info
from typing import Annotated, Any, Literal
from zipfile import BadZipFile
from zlib import error as BadStream

import numpy as np
from annotated_types import Ge
from numpy.typing import NDArray

from halfstep import files, storage
from halfstep.config.validate import Count
from halfstep.errors import CheckpointError, ConfigError
from halfstep.evaluation.gate import Decision
from halfstep.evaluation.metrics.bootstrap import Interval
from halfstep.evaluation.metrics.cost import Cost
from halfstep.evaluation.metrics.drift import Drift
from halfstep.evaluation.metrics.fidelity import Fidelity
from halfstep.evaluation.metrics.memorisation import Memorisation
from halfstep.schema import build, plain, SchemaError, UNWRITTEN

FORMAT = 2
REPORT, PICTURES = "report.json", "report.npz"
MEND = "write halfstep evaluate again"
Pictures = Mapping[str, NDArray[Any]]
"""Arrays by name: `grid` uint8 [rows, seeds, H, W, C], `worst` [pairs, 2, H, W, C], `guided`
[scales, rows, seeds, H, W, C], with `grid_labels`, `worst_labels`, `guided_labels`, `guided_scales`."""
Positive = Annotated[float, Ge(float_info.min)]
"""A number drawn on a logarithmic axis."""
Sampled = Literal["teacher", "baseline", "student", "compressed", "other"]
Encoded = Literal["teacher", "baseline", "student"]


@dataclass(frozen=True, kw_only=True)
class Distances:
    """Distances of samples to real data, and scores of samples; None where not measured."""

    frechet_distance: Interval
    frechet_unbiased: Interval | None = None
    kernel_distance: Interval | None = None
    inception_score: Interval | None = None
    precision: Interval | None = None
    recall: Interval | None = None


@dataclass(frozen=True)
class Split:
    """The two parts of a student's error.

    grid      cost of the coarser grid, by the teacher at both numbers of steps
    learning  error of one student step against two steps of its own teacher
    """

    grid: Interval
    learning: Interval


@dataclass(frozen=True, kw_only=True)
class Compressed:
    """A network made smaller after training, or the student before it ("as trained").

    student      name of the student's row
    bytes        of its tensors in a file
    zeros        share of its parameters that is exactly 0
    rmse, ratio  against the student's samples of the same noise: pixel error, ratio of Fréchet distances
    """

    kind: str
    student: str
    bytes: int
    zeros: float
    rmse: Interval | None = None
    ratio: Interval | None = None


@dataclass(frozen=True, kw_only=True)
class Row:
    """Measurements of one way of sampling; None where not measured.

    role           teacher (at full steps), baseline (the teacher in fewer steps), student, compressed (a
                   student made smaller after training) or other (a network of another size)
    ratio          Fréchet distance over the teacher's, paired
    fidelity       error against the teacher's samples of the same noise
    network        name of the network, of role other
    student_ratio  of role other: the student's Fréchet distance over this one's, at as many steps
    """

    role: Sampled
    name: str
    sampler: str
    steps: Count
    calls: Count
    distances: Distances
    ratio: Interval | None = None
    fidelity: Fidelity | None = None
    split: Split | None = None
    memorisation: Memorisation | None = None
    drift: tuple[Drift, ...] | None = None
    cost: Cost | None = None
    compressed: Compressed | None = None
    network: str | None = None
    student_ratio: Interval | None = None


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """The way all rows were measured: numbers compare only where all of this is the same.

    digest          of the weights of the feature network
    data            fingerprint of the real data
    real, real_few  numbers of real samples: of the Fréchet distance, of all other distances
    floor           Fréchet distance that as many perfect samples would have
    left_out        baselines that were not sampled, a sentence each
    machine         that seconds were measured on
    """

    features: str
    preprocessing: str
    digest: str
    data: str
    samples: Count
    real: int
    real_few: int
    seed: int
    guidance_scale: float
    floor: float
    left_out: tuple[str, ...]
    machine: str


@dataclass(frozen=True)
class GuidedReference:
    """Samples of the guided teacher that all guided rows are compared with."""

    samples: Count
    steps: Count
    sampler: str
    seed: int


@dataclass(frozen=True, kw_only=True)
class GuidedRow:
    """Measurements of one way of sampling at one guidance scale.

    distance       Fréchet distance to the guided teacher's samples of other noise
    floor_ratio    of a student: its distance over the teacher's own, paired
    rmse           of a student: pixel error against the teacher's samples of the same noise
    data_distance  Fréchet distance to the real data
    """

    guidance_scale: float
    role: Literal["teacher", "student"]
    name: str
    sampler: str
    steps: Count
    calls: Count
    distance: Interval
    floor_ratio: Interval | None
    rmse: Interval | None
    data_distance: Positive
    inception_score: float | None


@dataclass(frozen=True)
class GuidedTable:
    """Students that take the guidance scale as an input, against the guided teacher at each scale."""

    reference: GuidedReference
    scales: tuple[float, ...]
    rows: tuple[GuidedRow, ...]


@dataclass(frozen=True)
class EncoderRow:
    """Reconstruction error of one encoder.

    steps  of the encoder: its network calls
    full   root mean square error over all pixels, in [-1, 1], decoded at the teacher's full steps
    same   the same, decoded in as many steps as were encoded; None where the teacher cannot
    """

    name: str
    role: Encoded
    steps: Count
    full: Interval
    same: Interval | None


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """Images encoded to noise and decoded again.

    data      their fingerprint
    held_out  whether no network was trained on them
    full      steps of the teacher
    """

    data: str
    images: Count
    held_out: bool
    full: Count
    rows: tuple[EncoderRow, ...]


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Origin of a run: the command, versions and machine; None where not known."""

    command: str
    halfstep: str | None
    torch: str | None
    commit: str | None
    machine: str


@dataclass(frozen=True)
class TrainingCost:
    """Cost of training; a forward counts 1, forward and backward 3."""

    seconds: float
    forwards: float
    updates: float


@dataclass(frozen=True)
class TrainingCosts:
    """Cost of training the teacher, and of all stages of the run; None where not known."""

    teacher: TrainingCost | None
    halvings: TrainingCost | None


@dataclass(frozen=True, kw_only=True)
class GateReport:
    """The decisions of a run's gate, as RUN/gate.json has them."""

    tolerance: float
    until: int | None
    about: dict[str, object]
    stopped: str | None
    best: str | None
    decisions: tuple[Decision, ...]


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """The run that was evaluated: folder name, options, decision of the gate, cost."""

    folder: str
    config: dict[str, object] = field(default_factory=dict)
    gate: GateReport | None = None
    cost: TrainingCosts | None = None


@dataclass(frozen=True)
class Update:
    """One logged update of training."""

    stage: str
    update: Count
    loss: float
    rate: float


@dataclass(frozen=True, kw_only=True)
class Report:
    """Every measurement of a run whose students sample; RUN/report.json, with RUN/report.npz as `pictures`.

    rows      the teacher at full steps first
    training  every logged update, over all stages
    verdict   the result in one sentence
    """

    provenance: Provenance
    run: RunSummary
    measure: Measurement
    rows: tuple[Row, ...]
    guided: GuidedTable | None = None
    training: tuple[Update, ...] = ()
    verdict: str = ""
    pictures: Pictures = field(default_factory=dict, metadata=UNWRITTEN, repr=False, compare=False)

    @property
    def teacher(self) -> Row:
        """The teacher at full steps."""
        return self.rows[0]

    def rows_of(self, role: Sampled) -> list[Row]:
        """The rows of one role, most network calls first."""
        return sorted((row for row in self.rows if row.role == role), key=lambda row: -row.calls)

    @property
    def students(self) -> list[Row]:
        """The rows of the students, most network calls first."""
        return self.rows_of("student")


@dataclass(frozen=True, kw_only=True)
class EncoderReport:
    """Every measurement of a run whose students encode images to noise."""

    provenance: Provenance
    run: RunSummary
    reconstruction: Reconstruction
    training: tuple[Update, ...] = ()
    verdict: str = ""
    pictures: Pictures = field(default_factory=dict, metadata=UNWRITTEN, repr=False, compare=False)


AnyReport = Report | EncoderReport


def save_report(report: AnyReport, folder: Path) -> None:
    """Write FOLDER/report.json and FOLDER/report.npz."""
    storage.write_json(folder / REPORT, {"format": FORMAT, **plain(report)})
    with files.replacing(folder / PICTURES) as (part,), part.open("wb") as file:
        np.savez_compressed(file, **report.pictures)  # type: ignore[arg-type]


def read_report(folder: Path) -> AnyReport:
    """The report that `save_report` wrote.

    `ConfigError` where the run was not evaluated, `CheckpointError` where a file is damaged or was changed.
    """
    path = folder / REPORT
    if not path.exists():
        raise ConfigError(
            f"'{folder}' was not evaluated yet (it has no {REPORT}): write halfstep evaluate {folder}"
        )
    content = storage.read_json(path, dict[str, object], format=FORMAT, mend=MEND)
    return parse_report(content, f"'{path}'", read_pictures(folder))


def parse_report(content: Mapping[str, object], source: str, pictures: Pictures) -> AnyReport:
    """The report of a table as report.json has it; `source` names the file in a refusal."""
    table = {name: value for name, value in content.items() if name != "format"}
    try:
        report: AnyReport
        if "reconstruction" in table:
            report = build(table, EncoderReport)
        else:
            report = build(table, Report)
            _check_rows(report.rows)
    except SchemaError as wrong:
        raise CheckpointError(f"{source} is damaged: {wrong}; {MEND}") from None
    return replace(report, pictures=pictures)


def _check_rows(rows: tuple[Row, ...]) -> None:
    """Refuse rows without a teacher, without a part that their role needs, or without a place on an axis."""
    if not rows or rows[0].role != "teacher":
        raise SchemaError("it has no rows that begin with the teacher")
    for k, row in enumerate(rows):
        if row.role == "compressed" and row.compressed is None:
            raise SchemaError(f"it lacks rows[{k}].compressed")
        if row.role == "other" and row.network is None:
            raise SchemaError(f"it lacks rows[{k}].network")
        if (value := row.distances.frechet_distance.value) < float_info.min:
            raise SchemaError(f"rows[{k}].distances.frechet_distance is too small, got {value}")


def read_pictures(folder: Path) -> Pictures:
    """The arrays of FOLDER/report.npz; none where the file does not exist."""
    path = folder / PICTURES
    if not path.exists():
        return {}
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, EOFError, BadZipFile, BadStream) as error:
        raise CheckpointError(
            f"'{path}' is damaged ({error}): write halfstep evaluate {folder} again"
        ) from None
