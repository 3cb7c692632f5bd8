"""Where a pipeline is: its own folder, or the run that made it."""

import os
import sys
from pathlib import Path

from halfstep import storage
from halfstep.errors import ConfigError
from halfstep.pipeline import Pipeline


def find_pipeline(path: Path, *, steps: int | None = None, net: str | None = None) -> Pipeline:
    """The pipeline in this folder, or a run's: the stage of so many steps, else the one of the
    fewest; of a run with a gate, the last that passed."""
    see_current_folder(net)
    if (path / "pipeline.json").exists():
        return Pipeline.load(path, net=net)
    found = sorted(p.parent for p in (path / "stages").glob("[!.]*/pipeline.json"))
    if not found:
        raise ConfigError(
            f"'{path}' holds neither a pipeline nor a run with a finished stage: give the folder that "
            "has a pipeline.json, or the --out of a run"
        )
    takes = {folder: _takes(folder) for folder in found}
    if steps is None and (path / "gate.json").exists():
        return Pipeline.load(path / "stages" / _best(path), net=net)
    if steps is None:
        return Pipeline.load(min(found, key=lambda folder: min(takes[folder])), net=net)
    for folder in found:
        if steps in takes[folder] or ANY in takes[folder]:
            return Pipeline.load(folder, net=net)
    own = sorted({n for counts in takes.values() for n in counts})
    raise ConfigError(
        f"no student of '{path}' was distilled for {steps} steps: they take "
        f"{' or '.join(map(str, own))}"
    )


def _best(path: Path) -> str:
    """The last stage that passed the run's gate."""
    best = storage.read_json(path / "gate.json").get("best")
    if not isinstance(best, str):
        raise ConfigError(
            f"no student of '{path}' passed its gate: say which one you mean with --steps, or give the "
            "folder of a stage"
        )
    return best


ANY = 2**31
"""A teacher takes any number of steps, which counts as many."""


def _takes(folder: Path) -> list[int]:
    """The numbers of steps that a stage's pipeline can take."""
    grids = storage.read_json(folder / "pipeline.json").get("times", [])
    return [len(times) - 1 for times in grids] or [ANY]


def see_current_folder(net: str | None) -> None:
    """Let `--net package.module:function` name code in the folder where the command is typed."""
    if net is not None and ":" in net and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
