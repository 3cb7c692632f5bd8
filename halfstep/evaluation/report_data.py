"""The report of a run as typed values; `report_files` reads and writes them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from sys import float_info
from typing import Annotated, Any, Literal

from annotated_types import Ge
from numpy.typing import NDArray

from halfstep.config import JsonObject
from halfstep.config.validate import Count
from halfstep.evaluation.gate import Decision
from halfstep.evaluation.metrics.bootstrap import Interval
from halfstep.evaluation.metrics.cost import Cost
from halfstep.evaluation.metrics.drift import Drift
from halfstep.evaluation.metrics.fidelity import Fidelity
from halfstep.evaluation.metrics.memorisation import Memorisation
from halfstep.evaluation.standing import BestBaseline, StudentVerdict
from halfstep.schema import UNWRITTEN

Pictures = Mapping[str, NDArray[Any]]
"""Arrays by name: `grid` uint8 [rows, seeds, H, W, C], `worst` [pairs, 2, H, W, C], `guided`
[scales, rows, seeds, H, W, C], with `grid_labels`, `worst_labels`, `guided_labels`, `guided_scales`;
with classes also `grid_classes`, of each seed."""
Positive = Annotated[float, Ge(float_info.min)]
"""A number for a logarithmic axis."""
RowRole = Literal["teacher", "baseline", "student", "compressed", "other"]
Encoded = Literal["teacher", "baseline", "student"]


@dataclass(frozen=True, kw_only=True)
class Distances:
    """Distances of samples to real data, and scores of samples; None if not measured."""

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
class CompressedRow:
    """A compressed student, or the student itself ("as trained").

    student      name of the student's row
    bytes        of its tensors in a file
    zeros        share of parameters that are exactly 0
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
    """Measurements of one sampling setup; None if not measured.

    role           teacher (at full steps), baseline (the teacher in fewer steps), student, compressed (a
                   compressed student) or other (a network of another size)
    ratio          Fréchet distance over the teacher's, paired
    student_ratio  for role other: the student's Fréchet distance over this one's, at as many steps
    baseline       for a student: the undistilled teacher at its best with at most as many calls
    """

    role: RowRole
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
    compressed: CompressedRow | None = None
    network: str | None = None
    student_ratio: Interval | None = None
    baseline: BestBaseline | None = None


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """The settings of all measurements; numbers with other settings are not comparable.

    digest          of the weights of the feature network
    data            fingerprint of the real data
    real, real_few  numbers of real samples: for the Fréchet distance, for all other distances
    floor           expected Fréchet distance of as many perfect samples; 0 if it is unknown
    floor_at_2000   of 2,000 perfect samples; None in older reports
    floor_note      why it is unknown, too low or of other classes than the samples; else empty
    left_out        a sentence for each baseline that was not sampled
    held_out        whether no network was trained on the real data
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
    floor_at_2000: float | None = None
    floor_note: str = ""
    held_out: bool = False


@dataclass(frozen=True)
class GuidedReference:
    """Samples of the guided teacher, the reference of all guided rows."""

    samples: Count
    steps: Count
    sampler: str
    seed: int


@dataclass(frozen=True, kw_only=True)
class GuidedRow:
    """Measurements of one sampling setup at one guidance scale.

    distance       Fréchet distance to the guided teacher's samples of other noise
    floor_ratio    for a student: its distance over the teacher's own, paired
    rmse           for a student: pixel error against the teacher's samples of the same noise
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
    """Students that take the guidance scale as an input, compared with the guided teacher at each scale."""

    reference: GuidedReference
    scales: tuple[float, ...]
    rows: tuple[GuidedRow, ...]


@dataclass(frozen=True)
class EncoderRow:
    """Reconstruction error of one encoder.

    full   root mean square error over all pixels, in [-1, 1], decoded at the teacher's full steps
    same   the same error, decoded in as many steps as encoded; None if the teacher cannot
    """

    name: str
    role: Encoded
    steps: Count
    full: Interval
    same: Interval | None


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """Images encoded to noise and decoded again.

    data      fingerprint of the images
    held_out  whether no network was trained on them
    """

    data: str
    images: Count
    held_out: bool
    full: Count
    rows: tuple[EncoderRow, ...]


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Origin of a run: the command, versions and machine; None if unknown.

    date  of the evaluation in UTC, as 2026-11-30: the page has no other
    """

    command: str
    halfstep: str | None
    torch: str | None
    commit: str | None
    machine: str
    date: str | None = None


@dataclass(frozen=True)
class TrainingCost:
    """Cost of training; a forward counts 1, forward and backward 3."""

    seconds: float
    forwards: float
    updates: float


@dataclass(frozen=True)
class TrainingCosts:
    """Cost of training the teacher, and of all stages of the run; None if unknown."""

    teacher: TrainingCost | None
    halvings: TrainingCost | None


@dataclass(frozen=True, kw_only=True)
class GateReport:
    """The decisions of a run's gate, from RUN/gate.json."""

    tolerance: float
    until: int | None
    about: JsonObject
    stopped: str | None
    best: str | None
    decisions: tuple[Decision, ...]
    best_steps: int | None
    """Steps of the best student; runs of before they were recorded lack them."""


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """The run that was evaluated: folder name, options, decision of the gate, cost."""

    folder: str
    config: JsonObject = field(default_factory=dict)
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
    """Every measurement of a run whose students sample: RUN/report.json, with RUN/report.npz as `pictures`.

    rows      first the teacher at full steps
    training  every logged update of all stages
    headline  the result in at most 12 words; `verdict` is the sentence with the numbers
    verdicts  two answers on every student, most network calls first
    """

    provenance: Provenance
    run: RunSummary
    measure: Measurement
    rows: tuple[Row, ...]
    guided: GuidedTable | None = None
    training: tuple[Update, ...] = ()
    headline: str = ""
    verdict: str = ""
    verdicts: tuple[StudentVerdict, ...] = ()
    pictures: Pictures = field(default_factory=dict, metadata=UNWRITTEN, repr=False, compare=False)

    @property
    def teacher(self) -> Row:
        """The teacher at full steps."""
        return self.rows[0]

    def rows_of(self, role: RowRole) -> list[Row]:
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
    headline: str = ""
    verdict: str = ""
    pictures: Pictures = field(default_factory=dict, metadata=UNWRITTEN, repr=False, compare=False)


AnyReport = Report | EncoderReport
