"""The models of handwritten digits bundled with halfstep, and those of images in its repository."""

from importlib.resources import as_file, files
from pathlib import Path

from halfstep import storage
from halfstep.errors import ConfigError
from halfstep.pipeline import Pipeline

REPOSITORY = Path(__file__).parents[2]
"""The folder that the package is in: the repository, unless it was installed elsewhere."""


def bundled_teacher() -> Pipeline:
    """The teacher of digits, made by presets/digits.toml."""
    with as_file(files("halfstep") / "assets" / "digits-teacher") as folder:
        return Pipeline.load(folder)


def bundled_students() -> list[Pipeline]:
    """Its students of any guidance scale, most steps first, made by presets/digits-guided.toml."""
    with as_file(files("halfstep") / "assets" / "digits-guided") as folder:
        return [Pipeline.load(place) for place in sorted(folder.glob("*-steps"), reverse=True)]


def bundled_cost(name: str) -> dict[str, float]:
    """The training cost of a bundled model: seconds, forwards and updates.

    name  digits-teacher or digits-guided
    """
    with as_file(files("halfstep") / "assets" / name / "cost.json") as path:
        return storage.read_json(path, dict[str, float])


def models_beside(name: str) -> Path:
    """The folder of models that only the repository has, because they would make the package too large.

    name  fashion-mnist-teacher or fashion-mnist-students

    `ConfigError` if halfstep was not installed from a clone in place.
    """
    folder = REPOSITORY / "examples" / "weights" / name
    if not folder.is_dir():
        raise ConfigError(
            f"the models '{name}' are in the repository of halfstep, not in the package: clone it, "
            "write make install there, and call its .venv/bin/halfstep"
        )
    return folder
