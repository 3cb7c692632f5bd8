"""Where a pipeline is: its own folder, or the run that made it."""

from pathlib import Path

from halfstep import storage
from halfstep.errors import ConfigError
from halfstep.pipeline import Pipeline


def find_pipeline(path: Path, *, steps: int | None = None, net: str | None = None) -> Pipeline:
    """The pipeline in this folder, or a run's: the stage of so many steps, else the last."""
    if (path / "pipeline.json").exists():
        return Pipeline.load(path, net=net)
    stages = path / "stages"
    found = sorted(p.parent for p in stages.glob("[!.]*/pipeline.json"))
    if not found:
        raise ConfigError(
            f"'{path}' holds neither a pipeline nor a run with a finished stage: give the folder that "
            "has a pipeline.json, or the --out of a run"
        )
    if steps is None:
        return Pipeline.load(min(found, key=_fewest_steps), net=net)
    by_steps = {_fewest_steps(folder): folder for folder in found}
    return Pipeline.load(by_steps.get(steps, found[0]), net=net)


def _fewest_steps(folder: Path) -> int:
    """Of a student's grids; a teacher takes any number, which counts as many."""
    grids = storage.read_json(folder / "pipeline.json")["times"]
    return min((len(times) - 1 for times in grids), default=2**31)
