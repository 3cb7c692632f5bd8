"""`halfstep distill knowledge`: a classifier learns what another one, or several, answer."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import torch
from rich.console import Console
from torch import nn

from halfstep.cli.classifier import held_out, named, share_of, Shown
from halfstep.cli.options import Flat, parse, Source, Where
from halfstep.cli.plan import rehearse
from halfstep.cli.progress import counting, loading, say, terminal
from halfstep.cli.runs import carried_out, describe_data, updates_on
from halfstep.data import Augmentation, Data, Dataset
from halfstep.errors import ConfigError
from halfstep.evaluation.classification import score_classifier
from halfstep.evaluation.intervals import Interval
from halfstep.kinds import Updates
from halfstep.methods import KnowledgeDistillation
from halfstep.methods.recipes import recipe
from halfstep.nets.classifiers import build_classifier, fitting_classifier
from halfstep.nets.classifiers_on_disk import load_classifier
from halfstep.nets.teachers import Teachers
from halfstep.noise import key, untouched
from halfstep.schema import literals
from halfstep.training import Training
from halfstep.training.classifiers import judging
from halfstep.training.jobs import Job
from halfstep.training.kept_answers import check_folder, kept_answers, missing
from halfstep.training.knowledge import distill_classifier, refuse_unlabelled, taught_classes
from halfstep.training.parallel import pick_device
from halfstep.training.teachers import refuse_unread

PROG = "halfstep distill knowledge"


@dataclass(frozen=True, kw_only=True)
class Taught:
    """Teachers and student."""

    teacher: tuple[Path, ...] = ()
    """Folders of classifiers, or of their runs; several answer as the mean of their probabilities."""
    teacher_net: str | None = None
    """package.module:function, if a teacher's network is one of your own."""
    net: str = "shallow"
    """The student: features, cnn, shallow, deeper, toy-student, ..., or package.module:function."""
    net_config: dict[str, str] = field(default_factory=dict)
    """Its own options, as NAME VALUE pairs."""


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What is learnt."""

    recipe: str = "hinton"
    """hinton, report, keras, deit-hard, patient-teacher, logits, tang, decoupled, dist, standardised,
    features, or package.module:function of your own."""
    recipe_config: dict[str, str] = field(default_factory=dict)
    """Its own options, as NAME VALUE pairs: temperature 4 soft_weight 0.9 hard_weight 0.1..0."""
    updates: Updates = 5_000
    """Optimiser updates."""
    cache: Path | None = None
    """A folder that keeps the teacher's answers, so that it is asked once a sample and view."""
    unlabelled: bool = False
    """Of --labels-per-class: keep the other images, without their labels."""


@dataclass(frozen=True, kw_only=True)
class DistillKnowledge:
    """Teach a classifier what one larger, or several, would answer (Hinton et al. 2015)."""

    where: Annotated[Where, Flat]
    source: Annotated[Source, Flat]
    taught: Annotated[Taught, Flat] = field(default_factory=Taught)
    objective: Annotated[Objective, Flat] = field(default_factory=Objective)
    shown: Annotated[Shown, Flat] = field(default_factory=Shown)
    training: Annotated[Training, Flat] = field(default_factory=Training)


def knowledge(argv: Sequence[str]) -> int:
    """Distil a classifier; say where it is, and how good beside its teacher."""
    console = terminal()
    options = parse(DistillKnowledge, argv, prog=PROG)
    options.where.check()
    if options.objective.cache is not None:
        check_folder(options.objective.cache)
    where, taught, asked, training = (
        options.where, options.taught, options.objective, options.training,
    )  # fmt: skip
    method = method_of(asked)
    teacher = teachers_of(taught)
    data, held = shown_of(loading(console, options.source), options)
    student = student_of(taught, teacher, data, training.seed)
    _refuse_others(teacher, data, held)
    refuse_unread(training, method)
    refuse_unlabelled(method, data)

    def work(job: Job, answers: Path | None = None) -> nn.Module:
        return distill_classifier(
            teacher, student, data, where.out, method=method, training=training,
            job=job.judged_by(held), answers=answers,
        )  # fmt: skip

    if where.dry_run:
        return rehearse(console, options, work)
    say(console, "teacher", f"{', '.join(map(str, taught.teacher))}: {_parameters(teacher)}")
    say(console, "student", f"{taught.net}: {_parameters(student)}")
    say(console, "data", describe_data(options.source, data))
    say(console, "learns", ", ".join(f"{t.name} {t.weight}" for t in method.live))
    say(console, "updates", updates_on(asked.updates, training, where.device))
    if asked.cache is not None and method.asks_teacher:
        _keep(console, asked.cache, teacher, data, where.device)
    with carried_out(where, options, console) as job:
        student = work(job, asked.cache)
    say(console, "at", where.out / "stages" / "student")
    _compare(console, student, teacher, held, data, options.shown.validate)
    return 0


def shown_of(found: Data, options: DistillKnowledge) -> tuple[Dataset, Dataset | None]:
    """What is taught with, images without labels and mixed ones too, and what is held out."""
    shown, seed = options.shown, options.training.seed
    if options.objective.unlabelled and not shown.labels_per_class:
        raise ConfigError(
            "--unlabelled keeps the images that --labels-per-class leaves without a label: give that, too"
        )
    if not isinstance(found, Dataset) or len(found.shape) != 3:
        raise ConfigError(
            f"classifiers are taught on images, and '{options.source.data}' has samples of shape "
            f"{list(found.shape)}: give images"
        )
    data, held = found, None
    if shown.validate is not None:
        share = share_of(shown.validate)
        if share is None:
            held = judging(held_out(shown.validate, options.source), data)
        else:
            data, apart = data.apart(share)
            held = judging(apart, data)
    if shown.labels_per_class:
        keep = options.objective.unlabelled
        data = data.labelled(shown.labels_per_class, seed=seed, rest=keep)
    if shown.augment:
        how = Augmentation(steps=shown.augment, views=shown.views, seed=seed)
        data = replace(data, augmentation=how)
    elif shown.views:
        raise ConfigError(
            "--views are of an augmentation, and there is none: add --augment flip crop"
        )
    return data, held


def method_of(asked: Objective) -> KnowledgeDistillation:
    """The method that the options name."""
    terms = recipe(asked.recipe, literals(asked.recipe_config))
    return KnowledgeDistillation(terms=terms, updates=asked.updates)


def teachers_of(taught: Taught) -> Teachers:
    """Whose folders the options name."""
    if not taught.teacher:
        raise ConfigError(f"{PROG} needs --teacher and the folder of a classifier, or several")
    if len({folder.resolve() for folder in taught.teacher}) < len(taught.teacher):
        raise ConfigError("--teacher names a folder twice: give each teacher once")
    return Teachers(*(load_classifier(folder, net=taught.teacher_net) for folder in taught.teacher))


def student_of(taught: Taught, teacher: Teachers, data: Dataset, seed: int) -> nn.Module:
    """A student of the teacher's classes, with weights that depend on the seed alone."""
    classes = teacher(_one(data)).shape[1]
    if data.classes > classes:
        raise ConfigError(
            f"the teacher knows {classes} classes and the data has {data.classes}: give data of those "
            "classes alone, or another teacher"
        )
    fits = fitting_classifier(taught.net, data.shape, classes)
    with untouched(key(seed, 0)):
        return build_classifier(taught.net, {**fits, **literals(taught.net_config)})


def _refuse_others(teacher: Teachers, data: Dataset, held: Dataset | None) -> None:
    """What distilling would refuse, and held-out images of classes that the teacher does not know."""
    taught_classes(teacher, data)
    if held is None:
        return
    taught_classes(teacher, held)
    if held.classes > (known := teacher(_one(data)).shape[1]):
        raise ConfigError(
            f"the teacher knows {known} classes and the held-out data has {held.classes}: validate on "
            "data of its classes"
        )


def _keep(console: Console, folder: Path, teacher: Teachers, data: Data, device: str) -> None:
    """Ask the teacher before the run, with a bar."""
    if not missing(folder, data):
        return
    with counting(console, "asking the teacher") as progress:
        chosen = pick_device(device)
        kept_answers(folder, teacher.to(chosen), data, device=chosen, progress=progress)


def _compare(
    console: Console,
    student: nn.Module,
    teacher: Teachers,
    held: Dataset | None,
    data: Dataset,
    validate: str | None,
) -> None:
    """The student beside its teacher, and how often they say the same, on all of the data."""
    judged = held or replace(data, augmentation=None, flip=False)
    if judged.unlabelled == len(judged):
        return
    mine = score_classifier(student, judged, teacher=teacher)
    theirs = score_classifier(teacher, judged)
    where = (
        "what it was trained with"
        if validate is None
        else f"{named(validate)}, which it has not seen"
    )
    rest = "" if mine.rows == len(judged) else f" ({mine.rows:,} of them with a label)"
    say(console, "on", f"{where}, all {len(judged):,} images{rest}; 95 % intervals")
    say(console, "student", f"{percent(mine.accuracy)} right")
    say(console, "teacher", f"{percent(theirs.accuracy)} right")
    if mine.agreement is not None:
        say(console, "agree", percent(mine.agreement))


def percent(share: Interval) -> str:
    """89.2 % (88.6 to 89.8)."""
    return f"{share.value:.1%} ({100 * share.low:.1f} to {100 * share.high:.1f})".replace("%", " %")


def _one(data: Data) -> torch.Tensor:
    return data.batch(torch.arange(1)).x0


def _parameters(net: nn.Module) -> str:
    return f"{sum(p.numel() for p in net.parameters()):,} parameters"
