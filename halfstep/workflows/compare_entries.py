"""The methods of a comparison, each by its verb, a preset or a TOML file of its options."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from halfstep.config import JsonObject
from halfstep.config.fields import build, options_of, OptionValues
from halfstep.config.preset_files import preset, preset_names
from halfstep.config.toml import from_table, read_toml
from halfstep.config.validate import is_valid
from halfstep.errors import ConfigError, unknown
from halfstep.methods import Method, METHODS
from halfstep.methods.pipeline_like import PipelineLike
from halfstep.methods.stages import StagePlan
from halfstep.training.config import TrainingOptions
from halfstep.workflows.options import DataOptions

M = TypeVar("M")
NAME = re.compile(r"\w[\w.-]*")
"""A name that a run's folder can have."""


@dataclass(frozen=True)
class Entry:
    """A method of a comparison.

    name     on the page and of its runs' folders: the verb, the preset, or the file's name
    verb     of `halfstep distill`
    unused   options of its file that hold for all methods, and are not taken from it
    """

    name: str
    verb: str
    method: Method
    unused: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _FileOptions(Generic[M]):
    """The options that a preset or a file may have: the method's, and those of all methods."""

    method: M
    dataset: DataOptions
    training: TrainingOptions


def read_entries(
    words: Sequence[str], *, start: int, counts: Sequence[int], target: tuple[str, int]
) -> list[Entry]:
    """The methods that these words name, with the options in their files.

    Args:
        words: verbs of `halfstep distill`, presets, or TOML files that say `method = "VERB"`.
        start: steps of the teacher, unless the file has others.
        counts: steps of the students.
        target: sampler and steps of the trajectories that a method with a solver learns, unless its file
            has others.

    Raises:
        ConfigError: an unknown word, a name given twice, or a method that makes no students of few steps.
    """
    solver, steps = target
    defaults = {"start": start, "first": max(counts), "stop": min(counts), "solver": solver}
    entries = [_entry(word, defaults, steps) for word in words]
    for k, entry in enumerate(entries):
        if entry.name in [other.name for other in entries[:k]]:
            raise ConfigError(
                f"two methods are called '{entry.name}': give each once, or another setting of it in a file "
                "of another name"
            )
    return entries


def _entry(word: str, defaults: OptionValues, steps: int) -> Entry:
    """The method of a word; one that can have the target's solver has its steps, too."""
    if word in METHODS:
        return _built(word, word, {}, Path(word), defaults, steps)
    if word.endswith(".toml"):
        path = Path(word)
        table = read_toml(path)
        verb = table.pop("method", None)
        if not isinstance(verb, str) or verb not in METHODS:
            raise ConfigError(
                f"'{word}' does not say which method its options are of: add a line "
                f'method = "progressive", or another of {", ".join(METHODS)}'
            )
        return _built(path.stem, verb, table, path, defaults, steps)
    if (verb := _verb_of(word)) is None:
        raise unknown("method", word, [*METHODS, *_presets(), "FILE.toml"])
    path = preset(word)
    return _built(word, verb, read_toml(path), path, defaults, steps)


def _presets() -> dict[str, str]:
    """The verb of each preset of a method."""
    return {name: verb for verb in METHODS for name in preset_names(f"halfstep distill {verb}")}


def _verb_of(name: str) -> str | None:
    return _presets().get(name)


def _built(
    name: str, verb: str, table: JsonObject, path: Path, defaults: OptionValues, steps: int
) -> Entry:
    """The method of these options; the start and the steps of its students are those of all by default."""
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"'{name}' names a folder of runs and a row of the page: rename the file to letters, digits and "
            "hyphens"
        )
    kind: Any = METHODS[verb].options()
    own = options_of(kind)
    if not {"start", "stop"} <= own.keys():
        raise ConfigError(
            f"'{verb}' makes no students of fewer steps, and the table compares those: give methods such as "
            "progressive"
        )
    given = from_table(_FileOptions[kind], table, path)
    # An option without a number of its own is left: halving in steps of two is no `first`.
    taken = [key for key in defaults if key in own and own[key].default is not None]
    values = {key: defaults[key] for key in taken if is_valid(defaults[key], own[key].type)}
    if "solver" in values:  # which learns the target's trajectories
        values["start"] = steps
    values |= {key: value for key, value in given.items() if key in own}
    method: Method = build(kind, values).build()
    return Entry(name, verb, method, tuple(key for key in given if key not in own))


def check_entry(entry: Entry, teacher: PipelineLike, counts: Sequence[int]) -> None:
    """Refuse a method that cannot distil this teacher to students of these steps.

    Raises:
        ConfigError: the teacher does not fit, a student is missing, or its students are of another kind.
    """
    entry.method.check(teacher)
    plan = entry.method.plan(teacher)
    made = sorted({steps for stage in plan for steps in steps_of(stage)}, reverse=True)
    if any(stage.direction == "invert" for stage in plan):
        raise ConfigError(
            f"the students of '{entry.name}' encode images and draw none: leave it out"
        )
    if teacher.guidance_range is None and any(stage.guidance_range for stage in plan):
        raise ConfigError(
            f"the students of '{entry.name}' take a guidance scale and are held against the guided teacher: "
            "distil that first, give its student of all scales as --teacher, and compare its students"
        )
    if missing := [steps for steps in counts if steps not in made]:
        raise ConfigError(
            f"'{entry.name}' makes no student of {in_words(missing)}: its students take "
            f"{', '.join(map(str, made)) or 'any number'}; give --counts among them, or another --start"
        )


def in_words(counts: Sequence[int]) -> str:
    """Numbers of steps in words, such as "2 or 1 steps".

    Args:
        counts: the numbers.
    """
    return f"{' or '.join(map(str, counts))} step{'' if list(counts) == [1] else 's'}"


def steps_of(stage: StagePlan) -> list[int]:
    """The numbers of steps that a stage's student serves."""
    return [len(times) - 1 for times in stage.grids or (stage.times,) if times]
