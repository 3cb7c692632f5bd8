"""The models of handwritten digits bundled with halfstep."""

from importlib.resources import as_file, files

from halfstep import storage
from halfstep.pipeline import Pipeline


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
