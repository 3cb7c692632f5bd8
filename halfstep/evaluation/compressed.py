"""Students made smaller after training, int8 or pruned: their folders, and their rows in a report."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict

from torch import nn

from halfstep import storage
from halfstep.errors import ConfigError
from halfstep.evaluation.metrics.cost import SamplingSetup
from halfstep.evaluation.metrics.fidelity import paired_rmse
from halfstep.evaluation.report_data import Compressed, Row
from halfstep.evaluation.sample_sets import SampleScorer, SampleSet
from halfstep.models.compression.int8 import plain_tensors
from halfstep.models.compression.magnitude_pruning import zero_share
from halfstep.pipeline import Pipeline
from halfstep.pipeline.saving import read_description

VARIANTS, RECORD = "compressed", "compressed.json"
"""Folder of the variants in a run, and the file in each that says which student it was made from."""


class _Record(TypedDict):
    kind: str
    steps: int
    sha256: str
    """Of the student's weights."""


@dataclass(frozen=True)
class Variant:
    """A student made smaller.

    steps  of the student that it was made from
    kind   how, in words: "int8", "30 % of weights pruned"
    """

    pipeline: Pipeline
    steps: int
    kind: str

    @property
    def way(self) -> SamplingSetup:
        """Sampled as its student is."""
        return self.pipeline, self.pipeline.sampler, self.steps


def write_variant(folder: Path, variant: Variant, student: Path) -> None:
    """Write a variant's pipeline into its folder, and which student it was made from.

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
    """The variants in RUN/compressed; refused where their student has other weights by now.

    student  the student's folder, if it is none of the run's stages
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
    one: Variant, samples: SampleSet, student: SampleSet, name: str, scorer: SampleScorer
) -> Compressed:
    """A variant, and its distance from its student's samples of the same noise.

    student, name  the student's samples, and the name of its row
    """
    return Compressed(
        kind=one.kind,
        student=name,
        bytes=size_of(one.pipeline.denoiser),
        zeros=zeros(one.pipeline.denoiser),
        rmse=paired_rmse(student.images, samples.images),
        ratio=scorer.ratio(samples, student),
    )


def as_trained(student: Pipeline, name: str) -> Compressed:
    """The student itself, beside its variants."""
    net = student.denoiser
    return Compressed(kind="as trained", student=name, bytes=size_of(net), zeros=zeros(net))


def with_students_work(rows: Sequence[Row]) -> list[Row]:
    """The rows, each variant with the multiply-adds of its student.

    torch does not count multiply-adds in int8, and counts those with 0.
    """
    work = {row.name: row.cost.multiply_adds for row in rows if row.cost}
    return [
        replace(row, cost=replace(row.cost, multiply_adds=work[row.compressed.student]))
        if row.role == "compressed" and row.cost and row.compressed
        else row
        for row in rows
    ]


def zeros(net: nn.Module) -> float:
    """The share of its parameters that is exactly 0; what is int8 is not looked into."""
    return zero_share(p for p in net.parameters() if type(p) is nn.Parameter)


def size_of(net: nn.Module) -> int:
    """Bytes of its tensors as they are written, float32 or int8: a file is these and a short header."""
    return sum(tensor.nbytes for tensor in plain_tensors(net).values())
