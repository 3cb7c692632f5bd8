"""Distil classifiers: a small one learns the answers of a larger one, or of several (Hinton et al. 2015)."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

from halfstep.config.validate import Updates, Validated
from halfstep.data import Data, Dataset
from halfstep.errors import ConfigError
from halfstep.evaluation.metrics.classification import score_classifier, Scores
from halfstep.methods import KnowledgeDistillation
from halfstep.methods.classifiers.recipes import recipe
from halfstep.models.classifiers.checkpoint import load_classifier
from halfstep.models.classifiers.ensemble import Teachers
from halfstep.models.classifiers.registry import build_classifier, infer_classifier_config
from halfstep.progress import Progress, SILENT
from halfstep.rng import fork_rng, key
from halfstep.schema import literals
from halfstep.training import TrainingConfig
from halfstep.training.checks.teacher import refuse_unread
from halfstep.training.classifiers.api import held_out_dataset
from halfstep.training.classifiers.distillation import (
    distill_classifier,
    refuse_unlabelled,
    taught_classes,
)
from halfstep.training.classifiers.logit_cache import cached_logits, check_folder, missing
from halfstep.training.distributed import pick_device
from halfstep.training.stages import RunOptions
from halfstep.workflows.options import DataOptions, FolderOptions
from halfstep.workflows.run_options import run_options_of
from halfstep.workflows.train_classifier import augmented, ImageOptions, split_held_out


@dataclass(frozen=True, kw_only=True)
class ClassifierTeacherOptions(Validated):
    """Teachers and student."""

    teacher: tuple[Path, ...] = ()
    """Folders of classifiers, or of their runs; several teach the mean of their probabilities."""
    teacher_net: str | None = None
    """package.module:function, if a teacher's network is one of your own."""
    net: str = "shallow"
    """The student: features, cnn, shallow, deeper, toy-student, ..., or package.module:function."""
    net_config: dict[str, str] = field(default_factory=dict)
    """The student's own options, as NAME VALUE pairs."""


@dataclass(frozen=True, kw_only=True)
class RecipeOptions(Validated):
    """The losses, and the labels that they use."""

    recipe: str = "hinton"
    """hinton, report, keras, deit-hard, patient-teacher, logits, tang, decoupled, dist, standardised,
    features, or package.module:function of your own."""
    recipe_config: dict[str, str] = field(default_factory=dict)
    """The recipe's own options, as NAME VALUE pairs: temperature 4 soft_weight 0.9 hard_weight 0.1..0."""
    updates: Updates = 5_000
    """Optimiser updates."""
    cache: Path | None = None
    """A folder for the teacher's logits, so that they are computed once for each sample and view."""
    unlabelled: bool = False
    """With --labels-per-class: keep the other images, without their labels."""


@dataclass(frozen=True, kw_only=True)
class DistillClassifierConfig:
    """Distil a classifier from a larger one, or from several (Hinton et al. 2015)."""

    folder: FolderOptions
    dataset: DataOptions
    networks: ClassifierTeacherOptions = field(default_factory=ClassifierTeacherOptions)
    recipe: RecipeOptions = field(default_factory=RecipeOptions)
    images: ImageOptions = field(default_factory=ImageOptions)
    training: TrainingConfig = field(default_factory=TrainingConfig)


@dataclass(frozen=True)
class ClassifierComparison:
    """Student and teacher on the same images."""

    images: int
    student: Scores
    teacher: Scores


@dataclass(frozen=True)
class ClassifierDistillation:
    """A student that is ready for training; nothing is written yet."""

    config: DistillClassifierConfig
    method: KnowledgeDistillation
    teacher: Teachers
    student: nn.Module
    data: Dataset
    held_out: Dataset | None

    @property
    def uses_teacher(self) -> bool:
        """Whether logits of the teacher are missing from the cache."""
        cache = self.config.recipe.cache
        return cache is not None and self.method.uses_teacher and bool(missing(cache, self.data))

    def fill_cache(self, *, progress: Progress = SILENT) -> None:
        """Write the teacher's missing logits to the cache."""
        cache, device = self.config.recipe.cache, pick_device(self.config.folder.device)
        if cache is not None:
            cached_logits(
                cache, self.teacher.to(device), self.data, device=device, progress=progress
            )

    def run(self, job: RunOptions | None = None) -> nn.Module:
        """Train the student into the run folder; returns it, in eval mode."""
        config, job = self.config, job or run_options_of(self.config)
        cache = None if job.dry_run else config.recipe.cache
        return distill_classifier(
            self.teacher, self.student, self.data, config.folder.out, method=self.method,
            training=config.training, job=job.validated_on(self.held_out), cache=cache,
        )  # fmt: skip

    def compare(self, student: nn.Module) -> ClassifierComparison | None:
        """Score student and teacher on the held-out data; without any, on the training images.

        None if the images have no labels.
        """
        data = self.held_out or replace(self.data, augmentation=None, flip=False)
        if data.unlabelled == len(data):
            return None
        scores = score_classifier(student, data, teacher=self.teacher)
        return ClassifierComparison(len(data), scores, score_classifier(self.teacher, data))


Images = tuple[Dataset, Data | None]
"""Images to train with, and held-out ones."""


def prepare_distillation(
    config: DistillClassifierConfig, *, images: Images | None = None, progress: Progress = SILENT
) -> ClassifierDistillation:
    """Load the teacher, read the data and build the student; `run` of the result trains it.

    Args:
        config: the options of `halfstep distill knowledge`.
        images: as `read_images` of this config read them; None reads them.
        progress: progress of reading the data.

    Raises:
        ConfigError: folder, teacher, data, student and recipe do not go together.
        DataError: data that cannot be read.
        CheckpointError: a damaged teacher.
    """
    config.folder.check()
    if config.recipe.cache is not None:
        check_folder(config.recipe.cache)
    terms = recipe(config.recipe.recipe, literals(config.recipe.recipe_config))
    method = KnowledgeDistillation(terms=terms, updates=config.recipe.updates)
    teacher = load_teachers(config.networks)
    data, held_out = distillation_images(images or read_images(config, progress), config)
    student = new_student(config.networks, teacher, data, config.training.seed)
    _refuse_other_classes(teacher, data, held_out)
    refuse_unread(config.training, method)
    refuse_unlabelled(method, data)
    return ClassifierDistillation(config, method, teacher, student, data, held_out)


def read_images(config: DistillClassifierConfig, progress: Progress = SILENT) -> Images:
    """Read the images to train with and the held-out ones, before labels are chosen and images augmented."""
    data = config.dataset.load(progress)
    if not isinstance(data, Dataset) or len(data.shape) != 3:
        raise ConfigError(
            f"classifiers are taught on images, and '{config.dataset.data}' has samples of shape "
            f"{list(data.shape)}: give images"
        )
    return split_held_out(data, config.images, config.dataset)


def distillation_images(
    images: Images, config: DistillClassifierConfig
) -> tuple[Dataset, Dataset | None]:
    """The images for training, which may be unlabelled or mixed, and the held-out ones."""
    options, unlabelled = config.images, config.recipe.unlabelled
    if unlabelled and not options.labels_per_class:
        raise ConfigError(
            "--unlabelled keeps the images that --labels-per-class leaves without a label: give that too"
        )
    data = images[0]
    held_out = None if images[1] is None else held_out_dataset(images[1], data)
    if options.labels_per_class:
        data = data.labelled(
            options.labels_per_class, seed=config.training.seed, keep_others=unlabelled
        )
    return augmented(data, options, config.training.seed), held_out


def load_teachers(options: ClassifierTeacherOptions) -> Teachers:
    """The teachers in the folders that the options name."""
    if not options.teacher:
        raise ConfigError(
            "halfstep distill knowledge needs --teacher FOLDER [FOLDER ...], classifiers to learn from"
        )
    if len({folder.resolve() for folder in options.teacher}) < len(options.teacher):
        raise ConfigError("--teacher names a folder twice: give each teacher once")
    return Teachers(
        *(load_classifier(folder, net=options.teacher_net) for folder in options.teacher)
    )


def new_student(
    options: ClassifierTeacherOptions, teacher: Teachers, data: Dataset, seed: int
) -> nn.Module:
    """A student of the teacher's classes, with weights that depend on the seed alone."""
    classes = _class_count(teacher, data)
    if data.num_classes > classes:
        raise ConfigError(
            f"the teacher knows {classes} classes and the data has {data.num_classes}: give data of those "
            "classes alone, or another teacher"
        )
    fits = infer_classifier_config(options.net, data.shape, classes)
    with fork_rng(key(seed, 0)):
        return build_classifier(options.net, {**fits, **literals(options.net_config)})


def _refuse_other_classes(teacher: Teachers, data: Dataset, held_out: Dataset | None) -> None:
    """`ConfigError` for training or held-out images of classes that the teacher does not know."""
    taught_classes(teacher, data)
    if held_out is None:
        return
    taught_classes(teacher, held_out)
    if held_out.num_classes > (classes := _class_count(teacher, data)):
        raise ConfigError(
            f"the teacher knows {classes} classes and the held-out data has {held_out.num_classes}: validate "
            "on data of its classes"
        )


def _class_count(teacher: Teachers, data: Dataset) -> int:
    """The number of the teacher's logits."""
    count: int = teacher(data.batch(torch.arange(1)).x0).shape[1]
    return count
