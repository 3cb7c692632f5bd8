"""Compress students after training: int8, or without their smallest weights."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, cast

from torch import nn

from halfstep import files
from halfstep.config.fields import POSITIONAL
from halfstep.config.validate import Place, Validated
from halfstep.data import load
from halfstep.errors import ConfigError
from halfstep.evaluation.compressed import (
    read_variants,
    size_of,
    Variant,
    VARIANTS,
    write_variant,
    zeros,
)
from halfstep.evaluation.report_data import AnyReport, RunSummary
from halfstep.evaluation.report_rows import Comparison
from halfstep.evaluation.scorer import features_for, scorer_for
from halfstep.evaluation.setups import Candidates, Evaluation, FULL_STEPS
from halfstep.models.classifiers.checkpoint import classifier_in
from halfstep.models.compression.int8 import quantise
from halfstep.models.compression.magnitude_pruning import check_share, sparsify
from halfstep.pipeline import Pipeline
from halfstep.progress import Progress, SILENT
from halfstep.training.distributed import pick_device
from halfstep.training.run_folder import RunFolder
from halfstep.training.run_identity import environment
from halfstep.workflows.compress_classifiers import compress_classifier, CompressedClassifier
from halfstep.workflows.evaluate import evaluate as evaluate_run
from halfstep.workflows.locate import DiffusersOptions, is_diffusers, locate_pipeline
from halfstep.workflows.report import provenance, refuse_other_images, report_on, save

DEFAULT, OWN = Evaluation(), DiffusersOptions()


@dataclass(frozen=True, kw_only=True)
class CompressConfig(Validated):
    """Make students smaller without training, and evaluate them beside what they were made from."""

    run: Annotated[Path, POSITIONAL]
    """A run; a student's own folder, with --teacher, --data and --out; or a classifier's."""
    int8: bool = False
    """Quantise linear layers to int8 with torchao: static weights, dynamic activations."""
    prune: tuple[float, ...] = ()
    """Shares of the weights to set to 0, the smallest of the whole network."""
    prune_rows: tuple[float, ...] = ()
    """Shares of each layer's rows (output channels) to set to 0, those of the smallest norm."""
    steps: tuple[int, ...] = ()
    """Steps of the students of a run; by default the one that passed its gate, or of the fewest steps."""
    out: Path | None = None
    """Folder for the variants of a student without a run, or of a classifier."""
    teacher: Place | None = None
    """The teacher's folder, file or name, if the run does not name it or it was moved."""
    diffusers: DiffusersOptions = field(default_factory=DiffusersOptions)
    data: str | None = None
    """The data, if not those of the run; for a classifier, labelled images to evaluate it on, of
    fashion-mnist:FOLDER and cifar10:FOLDER the test images."""
    verify: bool = False
    """For latents: compare the checksums of all files first, not only of those written since."""
    net: str | None = None
    """package.module:function, if the network is one of your own."""
    features: str = "auto"
    """As halfstep evaluate has it."""
    device: str = "auto"
    """auto, or one by name."""
    evaluate: bool = True
    """Evaluate the variants at once; halfstep evaluate RUN also does it."""
    evaluation: Evaluation = field(default_factory=Evaluation)

    def __post_init__(self) -> None:
        super().__post_init__()
        for share in (*self.prune, *self.prune_rows):
            check_share(share)

    def variants(self, net: nn.Module) -> Iterator[tuple[str, str, nn.Module]]:
        """(name of a folder, in words, a smaller copy of the network) of each variant."""
        if self.int8:
            yield "int8", "int8", quantise(copy.deepcopy(net))
        for rows, shares in ((False, self.prune), (True, self.prune_rows)):
            parts = "rows" if rows else "weights"
            for share in shares:
                percent = f"{100 * share:g}"
                smaller = sparsify(copy.deepcopy(net), share, rows=rows)
                yield f"{parts}-{percent}", f"{percent} % of {parts} pruned", smaller


@dataclass(frozen=True, kw_only=True)
class CompressedStudent:
    """A variant of a student that was written.

    kind            "int8" or "30 % of weights pruned"
    bytes           size of its tensors in the file, and `original_bytes` of its student's
    zeros           share of its parameters that is exactly 0
    """

    folder: Path
    kind: str
    bytes: int
    original_bytes: int
    zeros: float


@dataclass(frozen=True, kw_only=True)
class Compressed:
    """The variants that were written.

    students     variants of students; none of a classifier
    report       the evaluation with the variants; None of a classifier, or if not evaluated
    classifiers  a classifier as trained, and its variants
    """

    students: tuple[CompressedStudent, ...] = ()
    report: AnyReport | None = None
    classifiers: tuple[CompressedClassifier, ...] = ()


def compress(
    run: Path | str,
    *,
    int8: bool = False,
    prune: Sequence[float] = (),
    prune_rows: Sequence[float] = (),
    steps: Sequence[int] = (),
    out: Path | str | None = None,
    teacher: Path | str | None = None,
    diffusers: DiffusersOptions = OWN,
    data: str | None = None,
    verify: bool = False,
    net: str | None = None,
    features: str = "auto",
    device: str = "auto",
    evaluate: bool = True,
    evaluation: Evaluation = DEFAULT,
    progress: Progress = SILENT,
) -> Compressed:
    """Write smaller variants of a run's students into RUN/compressed, and evaluate the run with them.

    Args:
        run: a run; a student's own folder, with `teacher`, `data` and `out`; or a classifier's, with
            `data` and `out`.
        int8: quantise linear layers with torchao.
        prune: shares of the weights to set to 0, in (0, 1), the smallest of the whole network.
        prune_rows: shares of each layer's rows to set to 0, in (0, 1), those of the smallest norm.
        steps: of the students of a run; by default the one that passed its gate, or of the fewest steps.
        out: folder for the variants of a student without a run, or of a classifier.
        teacher: the teacher's folder, file or name, if the run does not name it or it was moved.
        diffusers: how a teacher of diffusers is read, if not as in the run.
        data: the data, if not the run's.
        verify: of latents: compare the checksums of all files first.
        net: package.module:function that builds a network of your own.
        features: as `evaluate` has it.
        device: auto (CUDA, then MPS, then CPU), or one by name.
        evaluate: evaluate the variants at once; `evaluate` also does it.
        evaluation: measurements, and how many samples they take.
        progress: advances with every step of sampling and every timing.

    Raises:
        ConfigError: students and options that do not go together, before anything is written.
        CheckpointError: a damaged run.
    """
    config = CompressConfig(
        run=Path(run), int8=int8, prune=tuple(prune), prune_rows=tuple(prune_rows),
        steps=tuple(steps), out=None if out is None else Path(out),
        teacher=None if teacher is None else str(teacher), diffusers=diffusers, data=data,
        verify=verify, net=net, features=features, device=device, evaluate=evaluate, evaluation=evaluation,
    )  # fmt: skip
    if not (int8 or config.prune or config.prune_rows):
        raise ConfigError(
            "no compression was chosen: write --int8, --prune 0.3 0.5 or --prune-rows 0.3"
        )
    instead = "choose another --out" if config.out else "copy the run to where it can be written"
    files.check_writable(config.out or config.run, instead)
    classifier = classifier_in(config.run)
    if classifier is not None:
        return Compressed(classifiers=_compress_classifier(classifier, config, progress))
    if (config.run / "run.json").exists():
        return _compress_run(config, progress)
    return _compress_student(config, progress)


def _compress_classifier(
    folder: Path, config: CompressConfig, progress: Progress
) -> tuple[CompressedClassifier, ...]:
    if config.out is None or config.data is None:
        raise ConfigError(
            "a classifier is evaluated on labelled data: write --data DATA and --out FOLDER"
        )
    _refuse_for_classifiers(config)
    return compress_classifier(
        folder, config.variants, data=config.data, out=config.out, net=config.net, progress=progress
    )


def _compress_run(config: CompressConfig, progress: Progress) -> Compressed:
    """Variants of a run's students, and its evaluation with them."""
    if config.out is not None:
        raise ConfigError("variants of a run's student lie in the run: leave --out out")
    run = RunFolder.open(config.run)
    students = run.students(full=FULL_STEPS, net=config.net)
    if not students:
        raise ConfigError(f"'{config.run}' has no finished student: distil one first")
    _refuse_encoder(students[0])
    if config.evaluate:
        again = f"halfstep evaluate {run.folder} --held-out DATA --against held-out"
        refuse_other_images(run.folder, f"write --no-evaluate, then {again}")
    written = list[CompressedStudent]()
    for steps in config.steps or (None,):
        student = locate_pipeline(config.run, steps=steps, net=config.net)
        written += _write_variants(config, student, run.student_folder(steps), config.run)
    report = None
    if config.evaluate:
        report = evaluate_run(
            config.run, config.evaluation, data=config.data, teacher=config.teacher,
            diffusers=config.diffusers, features=config.features, net=config.net,
            verify=config.verify, device=config.device, progress=progress,
        )  # fmt: skip
    return Compressed(students=tuple(written), report=report)


def _write_variants(
    config: CompressConfig, student: Pipeline, stage: Path, run: Path
) -> list[CompressedStudent]:
    """Write RUN/compressed/STAGE-NAME for each variant."""
    steps, net, written = len(student.grid()) - 1, student.denoiser.net, list[CompressedStudent]()
    of = f"{stage.name}-{steps}" if student.fine_times else stage.name
    for name, kind, smaller in config.variants(net):
        folder = files.subfolder(run, VARIANTS, f"{of}-{name}")
        denoiser = copy.copy(student.denoiser)
        denoiser._modules = {**student.denoiser._modules, "net": smaller}
        write_variant(folder, Variant(replace(student, denoiser=denoiser), steps, kind), stage)
        sizes = {"bytes": size_of(smaller), "original_bytes": size_of(net)}
        written.append(CompressedStudent(folder=folder, kind=kind, **sizes, zeros=zeros(smaller)))
    return written


def _compress_student(config: CompressConfig, progress: Progress) -> Compressed:
    """Variants of one student without a run, and their report in the folder `out`."""
    student = locate_pipeline(config.run, net=config.net)
    _refuse_encoder(student)
    if config.out is None or config.teacher is None or config.data is None or config.steps:
        raise ConfigError(
            f"'{config.run}' is no run, and knows neither teacher nor data: write --teacher FOLDER, "
            "--data DATA and --out FOLDER, without --steps"
        )
    if not student.times:
        raise ConfigError(
            f"'{config.run}' is a teacher: give a student, which has steps of its own"
        )
    is_own = not is_diffusers(config.teacher)
    teacher = locate_pipeline(
        config.teacher, net=config.net if is_own else None, diffusers=config.diffusers,
        size=cast(tuple[int, int], student.pixels),
    )  # fmt: skip
    refuse_other_images(config.out, "choose another --out")
    data = load(config.data, verify=config.verify, progress=progress)
    features = features_for(config.features, data)
    written = _write_variants(config, student, config.run, files.make_folder(config.out))
    device, evaluation = pick_device(config.device), config.evaluation
    scale = evaluation.guidance_scales or (student.guidance_range or (1.0,))[:1]
    evaluation = replace(
        evaluation, full=evaluation.full or teacher.steps, guidance_scales=scale, split_samples=0
    )
    variants = read_variants(config.out, net=config.net, student=config.run)
    for pipeline in (teacher, student, *(variant.pipeline for variant in variants)):
        pipeline.to(device)
    report = report_on(
        Comparison(
            Candidates(teacher, [student], data, variants=variants),
            scorer_for(features, data, evaluation, teacher=teacher), evaluation,
        ),
        provenance=provenance(environment(str(device)), []),
        run=RunSummary(folder=files.name_of(config.out)), guided=False, progress=progress,
    )  # fmt: skip
    save(report, config.out)
    return Compressed(students=tuple(written), report=report)


def _refuse_for_classifiers(config: CompressConfig) -> None:
    """Refuse options of the evaluation of samples."""
    default = CompressConfig(run=config.run)
    names = ("steps", "teacher", "verify", "features", "device", "evaluate")
    changed = [name for name in names if getattr(config, name) != getattr(default, name)]
    changed += [
        option.name
        for option in fields(Evaluation)
        if getattr(config.evaluation, option.name) != getattr(default.evaluation, option.name)
    ]
    if changed:
        option = "no-evaluate" if changed[0] == "evaluate" else changed[0].replace("_", "-")
        raise ConfigError(
            f"--{option} is for students that sample, and this is a classifier, evaluated on the CPU by its "
            "accuracy: leave it out"
        )


def _refuse_encoder(student: Pipeline) -> None:
    if student.direction == "invert":
        raise ConfigError(
            "this student encodes, and a report of encoders has no compressed variants: compress a student "
            "that samples"
        )
