"""Refuse to write a comparison again without runs that are in it."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from halfstep.errors import CheckpointError, ConfigError
from halfstep.evaluation import method_files, recipe_comparison
from halfstep.report.words.numbers import listed
from halfstep.training.run_folder import RunFolder

C = TypeVar("C")


def refuse_fewer_runs(out: Path, runs: Sequence[Path]) -> None:
    """Refuse to compare fewer runs of methods than the comparison in a folder does.

    A run that was deleted is not missed, nor is a comparison that cannot be read.

    Args:
        out: the folder of the comparison.
        runs: the folders of all runs that are to be compared.

    Raises:
        ConfigError: runs would be left out, or recipes were compared there.
    """
    _refuse_other(out, recipe_comparison.read_comparison, "recipes of knowledge distillation")
    if (before := _read(out, method_files.read_comparison)) is None:
        return
    beside = {method.name for method in before.methods if method.planned is None}
    places = (
        (run.method, run.seed, Path(run.folder) if run.method in beside else out / run.folder)
        for run in before.runs
    )
    _refuse(out, places, runs, "--methods, --seeds or --beside")


def refuse_fewer_students(
    out: Path, place: Callable[[str, int], Path], runs: Sequence[Path]
) -> None:
    """Refuse to compare fewer students of recipes than the comparison in a folder does.

    Args:
        out: the folder of the comparison.
        place: the folder of the run of a student, by its name and seed.
        runs: the folders of all runs that are to be compared.

    Raises:
        ConfigError: students would be left out, or methods were compared there.
    """
    _refuse_other(out, method_files.read_comparison, "methods")
    if (before := _read(out, recipe_comparison.read_comparison)) is None:
        return
    places = (
        (student.name, result.seed, place(student.name, result.seed))
        for student in before.students
        for result in student.seeds
    )
    _refuse(out, places, runs, "--recipes, --temperatures or --seeds")


def _read(out: Path, read: Callable[[Path], C]) -> C | None:
    """The comparison in a folder; None without one of this kind that can be read."""
    try:
        return read(out)
    except (ConfigError, CheckpointError):
        return None


def _refuse_other(out: Path, read: Callable[[Path], object], kind: str) -> None:
    """`ConfigError` for the folder of a comparison of another kind, which `read` reads."""
    if _read(out, read) is not None:
        raise ConfigError(f"'{out}' holds a comparison of {kind}: choose another --out")


def _refuse(
    out: Path, before: Iterable[tuple[str, int, Path]], runs: Sequence[Path], options: str
) -> None:
    """`ConfigError` for runs (method, seed, folder) that exist and are not among these."""
    now = {run.resolve() for run in runs}
    left_out = dict[str, list[str]]()
    for name, seed, folder in before:
        if folder.resolve() not in now and RunFolder(folder).exists:
            left_out.setdefault(name, []).append(str(seed))
    if not left_out:
        return
    names = [
        f"{name} (seed{'s' if seeds[1:] else ''} {listed(seeds)})"
        for name, seeds in left_out.items()
    ]
    raise ConfigError(
        f"the comparison in '{out}' also has {listed(names)}, and this command would write it without: give "
        f"all of its runs by {options}, or choose another --out"
    )
