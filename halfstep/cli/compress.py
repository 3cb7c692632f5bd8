"""`halfstep compress`: students in int8 or without their smallest weights, in the table of their run."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

from rich.console import Console
from torch import nn

from halfstep import files
from halfstep.cli.evaluate import Evaluate, evaluated
from halfstep.cli.options import Flat, parse
from halfstep.cli.progress import counting, loading, say, terminal
from halfstep.cli.tables import print_compressed, print_rows
from halfstep.config.fields import POSITIONAL
from halfstep.errors import ConfigError
from halfstep.evaluation.compressed import (
    read_variants,
    size_of,
    Variant,
    VARIANTS,
    write_variant,
    zeros,
)
from halfstep.evaluation.report_data import AnyReport, Report, RunSummary
from halfstep.evaluation.scorer import features_for, scorer_for
from halfstep.evaluation.setups import Candidates, Evaluation, FULL_STEPS
from halfstep.nets.classifiers_on_disk import classifier_in
from halfstep.nets.quantised import quantise
from halfstep.nets.sparsified import check_share, sparsify
from halfstep.pipeline import Pipeline
from halfstep.pipeline.description import read_description
from halfstep.report.numbers import big
from halfstep.training.asked import environment
from halfstep.training.parallel import pick_device
from halfstep.training.run_folder import RunFolder
from halfstep.workflows.locate import locate_pipeline
from halfstep.workflows.options import Source
from halfstep.workflows.report import provenance, report_on, save


@dataclass(frozen=True, kw_only=True)
class How:
    """What is done to a network; each makes a variant of its own."""

    int8: bool = False
    """Linear layers in int8, by torchao: weights once, what they read as it comes."""
    prune: tuple[float, ...] = ()
    """Shares of the weights to set to 0, the smallest of the whole network."""
    prune_rows: tuple[float, ...] = ()
    """Shares of each layer's rows (output channels) to set to 0, those of the smallest norm."""

    def __post_init__(self) -> None:
        for share in (*self.prune, *self.prune_rows):
            check_share(share)

    def made(self, net: nn.Module) -> Iterator[tuple[str, str, nn.Module]]:
        """(name of a folder, in words, the network), a copy each."""
        if self.int8:
            yield "int8", "int8", quantise(copy.deepcopy(net))
        for rows, shares in ((False, self.prune), (True, self.prune_rows)):
            what = "rows" if rows else "weights"
            for share in shares:
                percent = f"{100 * share:g}"
                smaller = sparsify(copy.deepcopy(net), share, rows=rows)
                yield f"{what}-{percent}", f"{percent} % of {what} pruned", smaller


@dataclass(frozen=True, kw_only=True)
class Compress:
    """Make students smaller without training, and judge them beside what they were made from."""

    student: Annotated[Path, POSITIONAL]
    """A run; a student's own folder, with --teacher, --data and --out; or a classifier's."""
    how: Annotated[How, Flat] = field(default_factory=How)
    steps: tuple[int, ...] = ()
    """Which of a run's students; the one that passed its gate, or of the fewest steps, by default."""
    out: Path | None = None
    """Where the variants of a student without a run, or of a classifier, go."""
    teacher: Path | None = None
    """Its teacher; a run knows, unless that was moved."""
    data: str | None = None
    """The data, if not those of the run; of a classifier those that it is judged by."""
    verify: bool = False
    """Of latents: compare the checksums of all files first, not of those alone that were written since."""
    net: str | None = None
    """package.module:function, if the network is one of your own."""
    features: str = "auto"
    """As halfstep evaluate has it."""
    device: str = "auto"
    """auto, or one by name."""
    judge: bool = True
    """Measure them at once; halfstep evaluate RUN does it, too."""
    evaluation: Annotated[Evaluation, Flat] = field(default_factory=lambda: Evaluation(full=0))


def compress(argv: Sequence[str]) -> int:
    """Make, measure, print."""
    console = terminal()
    options = parse(Compress, argv, prog="halfstep compress")
    how = options.how
    if not (how.int8 or how.prune or how.prune_rows):
        raise ConfigError("nothing says how: write --int8, --prune 0.3 0.5 or --prune-rows 0.3")
    instead = (
        "choose another --out" if options.out else "copy the run to where variants can lie in it"
    )
    files.check_writable(options.out or options.student, instead)
    place = classifier_in(options.student)
    if place is not None:
        from halfstep.cli.compressed_classifiers import judged_classifiers

        if options.out is None or options.data is None:
            raise ConfigError(
                "a classifier is judged by labelled data: write --data DATA and --out FOLDER"
            )
        _refuse_for_classifiers(options)
        return judged_classifiers(
            console, place, how.made, data=options.data, out=options.out, net=options.net
        )
    if (options.student / "run.json").exists():
        return _of_run(console, options)
    return _alone(console, options)


def _of_run(console: Console, options: Compress) -> int:
    """Variants of a run's students, and its evaluation with them."""
    if options.out is not None:
        raise ConfigError("variants of a run's student lie in the run: leave --out out")
    kept = RunFolder.open(options.student)
    own = kept.students(full=FULL_STEPS, net=options.net)
    if not own:
        raise ConfigError(f"'{options.student}' has no finished student: distil one first")
    _refuse_encoder(own[0])
    chosen = options.steps or (None,)
    for steps in chosen:
        student = locate_pipeline(options.student, steps=steps, net=options.net)
        [stage] = [p for p in kept.stages if _takes(p, len(student.grid()) - 1)]
        _make(console, options.how, student, stage, options.student)
    if not options.judge:
        return 0
    evaluation = Evaluate(
        run=(options.student,), teacher=options.teacher, net=options.net, data=options.data,
        verify=options.verify, features=options.features, device=options.device,
        evaluation=options.evaluation,
    )  # fmt: skip
    with counting(console, f"{options.evaluation.samples:,} samples a row") as progress:
        _print(console, evaluated(evaluation, progress))
    say(console, "report", options.student / "report.html")
    return 0


def _takes(stage: Path, steps: int) -> bool:
    return steps in [len(times) - 1 for times in read_description(stage)["times"]]


def _make(console: Console, how: How, student: Pipeline, stage: Path, run: Path) -> None:
    """RUN/compressed/STAGE-HOW for each."""
    steps = len(student.grid()) - 1
    for name, words, net in how.made(student.denoiser.net):
        folder = files.subfolder(run, VARIANTS, f"{stage.name}-{name}")
        denoiser = copy.copy(student.denoiser)
        denoiser._modules = {**student.denoiser._modules, "net": net}
        write_variant(folder, Variant(replace(student, denoiser=denoiser), steps, words), stage)
        size = f"{big(size_of(net), 'B')} of {big(size_of(student.denoiser.net), 'B')}"
        say(console, "made", f"{folder} ({words}: {size}, {zeros(net):.1%} of its parameters 0)")


def _alone(console: Console, options: Compress) -> int:
    """Variants of one student without a run, and their table in OUT."""
    student = locate_pipeline(options.student, net=options.net)
    _refuse_encoder(student)
    if options.out is None or options.teacher is None or options.data is None or options.steps:
        raise ConfigError(
            f"'{options.student}' is no run, and knows neither teacher nor data: write --teacher FOLDER, "
            "--data DATA and --out FOLDER, without --steps"
        )
    if not student.times:
        raise ConfigError(
            f"'{options.student}' is a teacher: give a student, which has steps of its own"
        )
    teacher = locate_pipeline(options.teacher, net=options.net)
    source = Source(data=options.data, verify=options.verify)
    data = loading(console, source)
    features = features_for(options.features, data)
    _make(console, options.how, student, options.student, files.make_folder(options.out))
    device = pick_device(options.device)
    asked = options.evaluation
    scale = asked.guidance or ((1.0,) if student.guidance is None else student.guidance[:1])
    asked = replace(asked, full=asked.full or teacher.steps, guidance=scale, split_samples=0)
    variants = read_variants(options.out, net=options.net, student=options.student)
    for one in (teacher, student, *(v.pipeline for v in variants)):
        one.to(device)
    subject = Candidates(teacher, [student], data, variants=variants)
    judge = scorer_for(features, data, asked)
    with counting(console, f"{asked.samples:,} samples a row") as progress:
        report = report_on(
            subject, judge, asked, provenance=provenance(environment(str(device)), []),
            run=RunSummary(folder=files.name_of(options.out)), guided=False, progress=progress,
        )  # fmt: skip
    save(report, options.out)
    _print(console, report)
    say(console, "report", options.out / "report.html")
    return 0


def _print(console: Console, report: AnyReport) -> None:
    assert isinstance(report, Report)
    print_rows(console, report)
    print_compressed(console, report)


def _refuse_for_classifiers(options: Compress) -> None:
    """Options that say how samples are judged."""
    plain = Compress(student=options.student)
    own = ("steps", "teacher", "verify", "features", "device", "judge")
    given = [name for name in own if getattr(options, name) != getattr(plain, name)]
    asked, usual = vars(options.evaluation), vars(plain.evaluation)
    given += [name for name in asked if asked[name] != usual[name]]
    if given:
        option = "no-judge" if given[0] == "judge" else given[0].replace("_", "-")
        raise ConfigError(
            f"--{option} is for students that sample, and this is a classifier, judged on the CPU by its "
            "accuracy: leave it out"
        )


def _refuse_encoder(student: Pipeline) -> None:
    if student.made_for == "encode":
        raise ConfigError(
            "this student encodes, and is judged by what it reconstructs, where there is no place for "
            "variants: compress one that samples"
        )
