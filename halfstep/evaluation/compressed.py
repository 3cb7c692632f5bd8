"""Compressed students (int8 or pruned): their folders, and their rows in a report."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict

from torch import nn

from halfstep import storage
from halfstep.errors import ConfigError
from halfstep.evaluation.metrics.cost import SamplingSetup
from halfstep.evaluation.metrics.fidelity import paired_rmse
from halfstep.evaluation.report_data import CompressedRow, Row
from halfstep.evaluation.sample_sets import SampleScorer, SampleSet
from halfstep.models.compression.int8 import plain_tensors
from halfstep.models.compression.magnitude_pruning import zero_share
from halfstep.pipeline import Pipeline
from halfstep.pipeline.saving import read_description

VARIANTS, RECORD = "compressed", "compressed.json"
"""Folder of the variants in a run, and the file in each that names its student."""


class _Record(TypedDict):
    kind: str
    steps: int
    sha256: str
    """Digest of the student's weights."""


@dataclass(frozen=True)
class Variant:
    """A compressed student.

    steps  steps of the student
    kind   the compression in words: "int8", "30 % of weights pruned"
    """

    pipeline: Pipeline
    steps: int
    kind: str

    @property
    def sampling(self) -> SamplingSetup:
        """The sampling setup, the same as its student's."""
        return self.pipeline, self.pipeline.sampler, self.steps


def write_variant(folder: Path, variant: Variant, student: Path) -> None:
    """Write a variant's pipeline and the record of its student into a folder.

    student  the student's folder
    """
    variant.pipeline.save(folder)
    record: _Record = {
        "kind": variant.kind,
        "steps": variant.steps,
        "sha256": read_description(student)["sha256"],
    }
    storage.write_json(folder / RECORD, record)


def read_variants(
    run: Path, *, net: str | None = None, student: Path | None = None
) -> list[Variant]:
    """The variants in RUN/compressed; `ConfigError` if their student's weights have changed.

    student  the student's folder, if it is not a stage of the run
    """
    stages = [student] if student else list((run / "stages").glob("[!.]*"))
    current = {
        read_description(stage)["sha256"] for stage in stages if (stage / "pipeline.json").exists()
    }
    variants = []
    for path in sorted((run / VARIANTS).glob(f"*/{RECORD}")):
        record, folder = storage.read_json(path, _Record), path.parent
        if record["sha256"] not in current:
            raise ConfigError(
                f"'{folder}' was made from other weights than the students of '{run}' have now: delete it, "
                "or write halfstep compress again"
            )
        pipeline = Pipeline.load(folder, net=net)
        variants.append(Variant(pipeline, record["steps"], record["kind"]))
    return variants


def compressed(
    variant: Variant, samples: SampleSet, student: SampleSet, name: str, scorer: SampleScorer
) -> CompressedRow:
    """Measure a variant against its student's samples of the same noise.

    student, name  the student's samples, and the name of its row
    """
    return CompressedRow(
        kind=variant.kind,
        student=name,
        bytes=size_of(variant.pipeline.denoiser),
        zeros=zeros(variant.pipeline.denoiser),
        rmse=paired_rmse(student.images, samples.images),
        ratio=scorer.ratio(samples, student),
    )


def as_trained(student: Pipeline, name: str) -> CompressedRow:
    """The student itself, for comparison with its variants."""
    net = student.denoiser
    return CompressedRow(kind="as trained", student=name, bytes=size_of(net), zeros=zeros(net))


def with_students_work(rows: Sequence[Row]) -> list[Row]:
    """Set the multiply-adds of each variant to its student's.

    torch does not count int8 products, and counts products with 0.
    """
    work = {row.name: row.cost.multiply_adds for row in rows if row.cost}
    return [
        replace(row, cost=replace(row.cost, multiply_adds=work[row.compressed.student]))
        if row.role == "compressed" and row.cost and row.compressed
        else row
        for row in rows
    ]


def zeros(net: nn.Module) -> float:
    """The share of parameters that are exactly 0, without int8 parameters."""
    return zero_share(p for p in net.parameters() if type(p) is nn.Parameter)


def size_of(net: nn.Module) -> int:
    """Bytes of a network's tensors in a file, float32 or int8."""
    return sum(tensor.nbytes for tensor in plain_tensors(net).values())
