"""Runs that exist beside the methods of a comparison: students of the same teacher, whatever trained them."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from halfstep import files
from halfstep.config import JsonObject
from halfstep.data.latents.dataset import is_latents
from halfstep.data.no_data import NO_DATA
from halfstep.errors import ConfigError
from halfstep.evaluation.method_data import TRAINED
from halfstep.identity import digest_of
from halfstep.pipeline import Pipeline
from halfstep.training.run_folder import RunFolder
from halfstep.training.run_repair import LATENTS
from halfstep.workflows.compare_config import CompareConfig
from halfstep.workflows.locate import DiffusersOptions, Official

SEED = re.compile(r"-seed\d+$")
SHOWN = ("start", "first", "stop", "solver", "noises", "weighting", "updates", "grid", *TRAINED)
"""Options of a run that the page shows."""


@dataclass(frozen=True)
class BesideMethod:
    """Runs that differ in their seeds alone.

    name  of the page's rows
    runs  the folder of each seed
    """

    name: str
    command: str
    options: JsonObject
    runs: dict[int, Path]


def completed(config: CompareConfig) -> CompareConfig:
    """The options with teacher and data of the first run beside, where they are not given.

    Raises:
        ConfigError: neither is there.
    """
    if not config.compare.beside:
        return config
    run = RunFolder.open(config.compare.beside[0])
    teacher, dataset = config.teacher, config.dataset
    if teacher.teacher is None and teacher.official.model is None:
        teacher = replace(
            teacher,
            teacher=run.config.get("teacher"),
            official=Official.from_config(run.config),
            diffusers=DiffusersOptions.from_config(run.config),
        )
    if not dataset.data:
        dataset = replace(dataset, **_data_of(run))
    return replace(config, teacher=teacher, dataset=dataset)


def _data_of(run: RunFolder) -> JsonObject:
    """The options of a run's data, by name."""
    if is_latents(run.folder / LATENTS):
        return {"data": str(run.folder / LATENTS)}
    names = ("data", "size", "channels", "skip_bad")
    options = {name: run.config[name] for name in names if name in run.config}
    if options.get("data") in (None, *NO_DATA):
        raise ConfigError(
            f"'{run.folder}' does not say which data its students can be compared with: write halfstep "
            "compare --data DATA with those that the teacher learnt"
        )
    return options


def read_beside(
    folders: Sequence[Path], teacher: Pipeline, names: Sequence[str]
) -> list[BesideMethod]:
    """The runs in these folders; those that differ in their seeds alone are one method.

    Args:
        folders: of the runs.
        teacher: of all students of the comparison.
        names: that methods of the comparison have.

    Raises:
        ConfigError: a folder without students, or with those of another teacher.
    """
    digest, found = digest_of(teacher.denoiser)[:16], list[BesideMethod]()
    for folder in folders:
        run = RunFolder.open(folder)
        _refuse_other(run, digest)
        command, options = run.about["command"], _options(run)
        seed = options.get("seed", 0)
        alike = [each for each in found if _same(each, command, options) and seed not in each.runs]
        if alike:
            alike[0].runs[seed] = folder
            continue
        taken = [*names, *(each.name for each in found)]
        name = next((n for n in _names(folder) if n not in taken), str(folder))
        found.append(BesideMethod(name, command, options, {seed: folder}))
    return found


def _names(folder: Path) -> Iterator[str]:
    """Names for the run in a folder, shortest first: a, runs/a, ..."""
    yield SEED.sub("", folder.name or files.name_of(folder))
    parts = folder.resolve().parts[1:]
    for count in range(2, len(parts) + 1):
        yield SEED.sub("", "/".join(parts[-count:]))


def refuse_twice(folders: Sequence[Path]) -> None:
    """Refuse a run that would stand twice in the table.

    Args:
        folders: of all runs.

    Raises:
        ConfigError: two of them are one folder.
    """
    places = [folder.resolve() for folder in folders]
    for folder, place in zip(folders, places, strict=True):
        if places.count(place) > 1:
            raise ConfigError(f"'{folder}' would stand in the table twice: give it once")


def _options(run: RunFolder) -> JsonObject:
    """The options of a run, with all of its learning rates where that changed."""
    values = [run.options, *(change["values"] for change in run.about["changed_options"])]
    rates = list(dict.fromkeys(each["learning_rate"] for each in values if "learning_rate" in each))
    return {**run.options, "learning_rate": rates} if len(rates) > 1 else run.options


def _same(method: BesideMethod, command: str, options: JsonObject) -> bool:
    """Whether a run of this command and these options is one of a method, whatever its seed."""
    if method.command != command:
        return False
    return {**method.options, "seed": 0} == {**options, "seed": 0}


def _refuse_other(run: RunFolder, digest: str) -> None:
    """`ConfigError` for a run without students, or of another teacher."""
    if "teacher" not in run.options or not run.about["command"].startswith("distill"):
        raise ConfigError(
            f"'{run.folder}' is no run of students: give --beside the --out of a 'halfstep distill'"
        )
    if run.options["teacher"] != digest:
        raise ConfigError(
            f"'{run.folder}' was made from another teacher, and only students of one teacher share a table: "
            "leave it out, or give its own teacher as --teacher"
        )
    if run.about["command"] == "distill encoder":
        raise ConfigError(
            f"the students of '{run.folder}' encode images and draw none: leave it out"
        )


def options_shown(options: JsonObject) -> JsonObject:
    """The options of a method among those of a run, where they have a value.

    Args:
        options: of run.json.
    """
    return {name: options[name] for name in SHOWN if options.get(name) not in (None, [], ())}
