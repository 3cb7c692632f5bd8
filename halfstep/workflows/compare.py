"""Compare methods at equal cost: equal budgets, ordinary runs, one target walk, one page."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from halfstep.data import Data
from halfstep.data.no_data import NO_DATA
from halfstep.errors import ConfigError
from halfstep.evaluation.method_data import MethodComparison
from halfstep.evaluation.scorer import features_for, load_features, refuse_samples
from halfstep.evaluation.setups import refuse_sampler
from halfstep.methods.default_updates import default_batch, number_of
from halfstep.pipeline import Pipeline
from halfstep.pipeline.conditioning import guided
from halfstep.progress import Progress, SILENT
from halfstep.training.progress import ProgressCallback
from halfstep.workflows.compare_beside import completed, read_beside, refuse_twice
from halfstep.workflows.compare_config import CompareConfig, CompareMeasures, ENCODED, RUNS
from halfstep.workflows.compare_entries import check_entry, Entry, read_entries
from halfstep.workflows.compare_left_out import refuse_fewer_runs
from halfstep.workflows.compare_runs import Part, PreparedComparison, refuse_other_runs
from halfstep.workflows.compare_scores import evaluated
from halfstep.workflows.default_sizes import default_learning_rate
from halfstep.workflows.locate import chosen_pipeline
from halfstep.workflows.options import EncodingOptions

if TYPE_CHECKING:
    from halfstep.workflows.teacher_latents import TeacherLatents


def compare(
    config: CompareConfig,
    *,
    callback: Callable[[Part], ProgressCallback] = lambda part: ProgressCallback(),
    progress: Progress = SILENT,
) -> MethodComparison:
    """Train every method for the same number of forwards, and compare the students on the same noise.

    Each part is an ordinary run in OUT/runs; the same call again goes on where it stopped, and skips what is
    finished.

    Args:
        config: methods, budget, data, teacher, measurements.
        callback: the progress of each run.
        progress: advances with every step of sampling.

    Raises:
        ConfigError: methods, data and teacher that do not go together, or a budget too small, before
            anything is trained; a folder of another comparison.
        DataError: data that cannot be read.
        CheckpointError: a damaged file of a run.
        Stopped: Ctrl-C or SIGTERM; all runs are saved.
    """
    prepared = prepare_comparison(config, progress=progress)
    refuse_other_runs(prepared)
    for part in prepared.parts:
        part.train(prepared, callback(part))
    return evaluated(prepared, progress)


def prepare_comparison(config: CompareConfig, *, progress: Progress = SILENT) -> PreparedComparison:
    """Read teacher and data, and plan every run within the budget.

    Args:
        config: as of `compare`.
        progress: advances while the data are read.

    Raises:
        ConfigError: as of `compare`.
        DataError: as of `compare`.
    """
    config.folder.check()
    if (config.folder.out / "run.json").exists():
        raise ConfigError(f"'{config.folder.out}' holds a run: choose another --out")
    config = completed(config)
    options = config.compare
    entries = read_entries(
        options.methods, start=options.start, counts=options.counts, target=options.target
    )
    if not entries and not options.beside:
        raise ConfigError(
            "halfstep compare needs --methods, such as progressive multistep-consistency, or runs --beside"
        )
    _refuse_without_data(config)
    teacher = find_teacher(config)
    for entry in entries:
        check_entry(entry, teacher, options.counts)
    refuse_sampler(teacher, "ddim", config.evaluation.full)
    refuse_sampler(teacher, *options.target)
    _refuse_measures(config.evaluation, teacher)
    beside = read_beside(options.beside, teacher, [entry.name for entry in entries])
    images = _images(config, teacher, progress)
    data = None if images is not None else config.dataset.load(progress)
    teacher = teacher if data is None else config.teacher.official.decoding(teacher, data)
    if data is not None and config.evaluation.features == "auto":
        features_for("auto", data)  # refuses before hours of training
    count = len(images.images) if images is not None else number_of(data)  # type: ignore[arg-type]
    rate = default_learning_rate(teacher.denoiser.net)
    training = config.training.resolved(default_batch(count), rate)
    budgeted = list(_budgeted(entries, teacher, options.budget, training.batch_size))
    parts = [
        Part(entry, config.folder.out / RUNS / f"{entry.name}-seed{seed}", seed,
             entry.method.cost(teacher, training.batch_size))
        for entry in budgeted
        for seed in range(training.seed, training.seed + options.seeds)
    ]  # fmt: skip
    runs = [*(part.folder for part in parts), *options.beside]
    refuse_twice(runs)
    refuse_fewer_runs(config.folder.out, runs)
    closing = ExitStack()
    if images is not None:
        data = _encoded(images, config, closing, progress)
    assert data is not None
    return PreparedComparison(config, teacher, data, training, budgeted, parts, beside, closing)


def _images(
    config: CompareConfig, teacher: Pipeline, progress: Progress
) -> "TeacherLatents | None":
    """The images that become latents of the teacher's codec, if the data are images and it has one."""
    if teacher.codec is None and config.encoding == EncodingOptions():
        return None
    from halfstep.workflows.teacher_latents import teacher_latents  # imports Pillow

    return teacher_latents(
        teacher, config.dataset, config.folder.out / ENCODED, config.encoding, progress=progress
    )


def _encoded(
    images: "TeacherLatents", config: CompareConfig, closing: ExitStack, progress: Progress
) -> Data:
    """The images as latents, encoded once into the comparison's folder; a few of them for a dry run."""
    if config.folder.dry_run:
        return closing.enter_context(images.rehearsed(config.folder.device))
    return images.encode(config.folder.device, progress=progress)


def _refuse_measures(measures: CompareMeasures, teacher: Pipeline) -> None:
    """`ConfigError` for measurements that could not be made, before anything is trained."""
    guided(teacher, measures.guidance_scale, teacher.unconditional)
    refuse_samples(measures.samples, teacher.shape)
    if measures.features != "auto":
        load_features(measures.features)


def _refuse_without_data(config: CompareConfig) -> None:
    if not config.dataset.data:
        raise ConfigError("halfstep compare needs --data: name the data that the teacher learnt")
    if config.dataset.data in NO_DATA:
        raise ConfigError(
            "students are compared with data, and --data none has none: name data that the teacher learnt"
        )


def _budgeted(
    entries: Sequence[Entry], teacher: Pipeline, budget: int | None, batch: int
) -> Iterator[Entry]:
    """The methods with the updates that the budget allows."""
    for entry in entries:
        if budget is None:
            raise ConfigError(
                "halfstep compare needs --budget, the forwards that each run may spend: write for example "
                "900000"
            )
        method = entry.method.with_budget(teacher, budget, batch, name=f"'{entry.name}'")
        yield replace(entry, method=method)


def find_teacher(config: CompareConfig) -> Pipeline:
    """The teacher that the options name.

    Args:
        config: of the comparison.

    Raises:
        ConfigError: no teacher, or one that cannot be found.
    """
    return chosen_pipeline(
        "halfstep compare needs --teacher FOLDER", config.teacher.teacher, config.teacher.official,
        net=config.teacher.net, diffusers=config.teacher.diffusers, size=config.dataset.size,
    )  # fmt: skip
