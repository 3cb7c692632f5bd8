"""Compare recipes of knowledge distillation: recipes x temperatures x seeds, each an ordinary run."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Lt

from halfstep.config.validate import Count, Updates, Validated
from halfstep.data import held_out_split
from halfstep.errors import ConfigError
from halfstep.evaluation.recipe_comparison import RecipeComparison
from halfstep.files import check_writable
from halfstep.methods.classifiers.recipes import recipe_options
from halfstep.methods.classifiers.terms import Temperature
from halfstep.progress import Progress, SILENT
from halfstep.training import TrainingConfig
from halfstep.training.run_folder import RunFolder
from halfstep.workflows.compare_left_out import refuse_fewer_students
from halfstep.workflows.compared_students import (
    compare_students,
    ComparedRun,
    logits_folder,
    plan_students,
    StudentPlan,
)
from halfstep.workflows.distill_classifier import (
    ClassifierDistillation,
    ClassifierTeacherOptions,
    DistillClassifierConfig,
    Images,
    prepare_distillation,
    read_images,
    RecipeOptions,
)
from halfstep.workflows.options import DataOptions, FolderOptions
from halfstep.workflows.train_classifier import ImageOptions, share_of

PLAIN = "plain"
"""The control: the same student of labels alone."""
ALONE = {"soft_weight": "0", "hard_weight": "1"}
"""The options of `hinton` without a teacher."""
HELD_OUT = "0.2"
Recipe = tuple[str, dict[str, str]]
"""A recipe's name and its options."""


@dataclass(frozen=True, kw_only=True)
class ComparedRecipeOptions(Validated):
    """The recipes, each beside the plain student."""

    recipes: tuple[str, ...] = ("hinton",)
    """Recipes of distill knowledge, with options after commas: hinton logits
    hinton,soft_weight=0.5,hard_weight=0.5. The plain student, without a teacher, is always the control."""
    temperatures: tuple[Temperature, ...] = ()
    """Temperatures of every recipe that has one: 2 4 8; by default the recipe's own."""
    seeds: Count = 3
    """Students of each recipe. Their seeds are --seed and those after it."""
    updates: Updates = 5_000
    """Optimiser updates of each student."""
    margin: Annotated[float, Ge(0), Lt(1)] = 0.0
    """The smallest gain of accuracy that matters, such as 0.01. A recipe that surely gains less does not
    help."""
    logits: bool = True
    """Keep the teacher's logits in OUT/teacher-logits, computed once, where recipe and images allow it."""
    unlabelled: bool = False
    """With --labels-per-class: keep the other images, without their labels."""


@dataclass(frozen=True, kw_only=True)
class ComparedImageOptions(ImageOptions):
    """Augmentation, labels and test images."""

    validate: str | None = None
    """Test images, as for --data; or a share of the data, such as 0.15. By default the test images of
    fashion-mnist and cifar10, else a fifth of the data."""


@dataclass(frozen=True, kw_only=True)
class CompareClassifiersConfig:
    """Compare recipes of knowledge distillation on the same seeds and test images."""

    folder: FolderOptions
    dataset: DataOptions
    networks: ClassifierTeacherOptions = field(default_factory=ClassifierTeacherOptions)
    recipe: ComparedRecipeOptions = field(default_factory=ComparedRecipeOptions)
    images: ComparedImageOptions = field(default_factory=ComparedImageOptions)
    training: TrainingConfig = field(default_factory=TrainingConfig)


@dataclass(frozen=True)
class ClassifierComparisonRun:
    """A comparison that is ready to run; nothing is written yet."""

    config: CompareClassifiersConfig
    students: tuple[ComparedRun, ...]
    cautions: tuple[str, ...]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Each recipe's student and its control."""
        return [(student.name, PLAIN) for student in self.students[1:]]

    @property
    def seeds(self) -> range:
        """The seeds of every student."""
        first = self.config.training.seed
        return range(first, first + self.config.recipe.seeds)

    def plan(self) -> list[StudentPlan]:
        """Try every student and say its cost; nothing is written.

        Raises:
            ConfigError: a run cannot be begun or continued.
        """
        return plan_students(self.students, self.seeds)

    def run(self, *, progress: Progress = SILENT) -> RecipeComparison:
        """Train what is missing, score all students, and write OUT/compare.json and OUT/compare.html.

        Args:
            progress: counts updates; its notes say the accuracy of each student.

        Raises:
            ConfigError: a run was begun with other options.
            Stopped: Ctrl-C or SIGTERM; the same command goes on.
        """
        return compare_students(
            self.students, self.pairs, self.seeds, self.config.folder.out,
            margin=self.config.recipe.margin, cautions=self.cautions, progress=progress,
        )  # fmt: skip


def prepare_classifier_comparison(
    config: CompareClassifiersConfig, *, progress: Progress = SILENT
) -> ClassifierComparisonRun:
    """Read the images and list the students of a comparison; `run` of the result trains them.

    Args:
        config: the options of `halfstep compare knowledge`.
        progress: progress of reading the data.

    Raises:
        ConfigError: teacher, data, student and recipes do not go together.
        DataError: data that cannot be read.
        CheckpointError: a damaged teacher.
    """
    check_writable(config.folder.out, "choose another --out")
    if "mixup" in config.images.augment:
        raise ConfigError(
            "mixed pictures have no label, from which the plain student learns: leave mixup out of --augment"
        )
    images = replace(config.images, validate=config.images.validate or _test_images(config.dataset))
    config = replace(config, images=images)
    recipes = {PLAIN: ("hinton", ALONE), **listed_recipes(config.recipe)}
    _refuse_shared_folders(recipes)
    first, out = config.training.seed, config.folder.out
    seeds = range(first, first + config.recipe.seeds)
    runs = [_run_of(out, title, seed) for title in recipes for seed in seeds]
    refuse_fewer_students(out, partial(_run_of, out), runs)
    read = read_images(_distillation(config, recipes[PLAIN], PLAIN, config.training.seed), progress)
    students = tuple(
        ComparedRun(title, partial(_prepare, config, read, recipes[title], title))
        for title in recipes
    )
    return ClassifierComparisonRun(config, students, tuple(_cautions(config, read)))


def compare_classifiers(
    config: CompareClassifiersConfig, *, progress: Progress = SILENT
) -> RecipeComparison:
    """Compare recipes of knowledge distillation; the same call again goes on where it stopped.

    Args:
        config: the options of `halfstep compare knowledge`.
        progress: counts updates; its notes say the accuracy of each student.

    Raises:
        ConfigError: teacher, data, student and recipes do not go together.
        DataError: data that cannot be read.
        CheckpointError: a damaged teacher or run.
        Stopped: Ctrl-C or SIGTERM; the same call goes on.
    """
    return prepare_classifier_comparison(config).run(progress=progress)


def listed_recipes(options: ComparedRecipeOptions) -> dict[str, Recipe]:
    """The recipes at every temperature, by title; `ConfigError` for one that is named twice."""
    if not options.recipes:
        raise ConfigError("--recipes is empty: write for example --recipes hinton logits")
    listed = dict[str, Recipe]()
    tempered = False
    for text in options.recipes:
        name, values = split_recipe(text)
        takes = "temperature" in recipe_options(name) and "temperature" not in values
        tempered |= takes
        for temperature in options.temperatures if takes and options.temperatures else (None,):
            extra = {} if temperature is None else {"temperature": f"{temperature:g}"}
            title = " ".join([text.replace(",", " "), *(f"T={t}" for t in extra.values())])
            if title in listed:
                raise ConfigError(
                    f"--recipes and --temperatures name '{title}' twice: write it once"
                )
            listed[title] = name, {**values, **extra}
    if options.temperatures and not tempered:
        raise ConfigError(
            "--temperatures is for recipes that have one, and none here does: leave it out, or add for "
            "example hinton to --recipes"
        )
    return listed


def split_recipe(text: str) -> tuple[str, dict[str, str]]:
    """The name and the options of a recipe such as hinton,soft_weight=0.5."""
    name, *options = re.split(r",(?=\w+=)", text)
    if not name or any("=" not in option for option in options) or "=" in name or "," in name:
        raise ConfigError(
            f"'{text}' is no recipe: write a name, with options after commas, such as "
            "hinton,soft_weight=0.5"
        )
    return name, dict(option.split("=", 1) for option in options)


def _refuse_shared_folders(names: Iterable[str]) -> None:
    """`ConfigError` for two students whose runs would have one folder."""
    by = dict[str, str]()
    for name in names:
        folder = _run_of(Path(), name, 0).parent.name
        if (other := by.setdefault(folder.lower(), name)) != name:
            raise ConfigError(
                f"the recipes '{other}' and '{name}' would share the folder '{folder}': compare them apart"
            )


def _run_of(out: Path, name: str, seed: int) -> Path:
    """The folder of a student's run."""
    return out / re.sub(r"[^\w.]+", "-", name).strip("-.") / f"seed-{seed}"


def _test_images(dataset: DataOptions) -> str:
    return dataset.data if held_out_split(dataset.data) == "test" else HELD_OUT


def _distillation(
    config: CompareClassifiersConfig, recipe: Recipe, title: str, seed: int
) -> DistillClassifierConfig:
    """The options of `halfstep distill knowledge` for one student of one seed."""
    name, options = recipe
    return DistillClassifierConfig(
        folder=replace(config.folder, out=_run_of(config.folder.out, title, seed)),
        dataset=config.dataset,
        networks=config.networks,
        recipe=RecipeOptions(
            recipe=name, recipe_config=options, updates=config.recipe.updates,
            unlabelled=config.recipe.unlabelled,
        ),
        images=config.images,
        training=replace(config.training, seed=seed),
    )  # fmt: skip


def _prepare(
    config: CompareClassifiersConfig, images: Images, recipe: Recipe, title: str, seed: int
) -> ClassifierDistillation:
    """The student of a recipe and a seed, with the cache of its teacher's logits."""
    options = _distillation(config, recipe, title, seed)
    prepared = prepare_distillation(options, images=images)
    cache = logits_folder(config.folder.out, prepared) if config.recipe.logits else None
    return replace(prepared, config=replace(options, recipe=replace(options.recipe, cache=cache)))


def _cautions(config: CompareClassifiersConfig, images: Images) -> Iterator[str]:
    """Sentences on test images that a teacher was trained on, or may have been."""
    (trained, held_out), validate = images, config.images.validate or HELD_OUT
    assert held_out is not None
    for folder in config.networks.teacher:
        known = _trained_on(folder)
        if known == held_out.fingerprint()[:16]:
            yield (
                f"the teacher in '{folder}' was trained on the test images, so that its students gain too "
                "much: give other test images to --validate"
            )
        elif share_of(validate) is not None and known != trained.fingerprint()[:16]:
            yield (
                f"the teacher in '{folder}' may know the test images, a share of the data, so that its "
                f"students gain too much: train it with --validate {validate}, too, or give other test images"
            )


def _trained_on(folder: Path) -> str | None:
    """The fingerprint of the images that a teacher's run was trained on; None if there is no run."""
    for place in (folder, folder.resolve().parent.parent):
        if (place / "run.json").exists():
            data: str | None = RunFolder.open(place).options.get("data")
            return data
    return None
