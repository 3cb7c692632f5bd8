"""The models of handwritten digits that come with halfstep."""

from importlib.resources import as_file, files

from halfstep import storage
from halfstep.pipeline import Pipeline


def bundled_teacher() -> Pipeline:
    """The teacher of digits; presets/digits.toml made it."""
    with as_file(files("halfstep") / "assets" / "digits-teacher") as folder:
        return Pipeline.load(folder)


def bundled_students() -> list[Pipeline]:
    """Its students for every guidance scale, the most steps first; presets/digits-guided.toml made them."""
    with as_file(files("halfstep") / "assets" / "digits-guided") as folder:
        return [Pipeline.load(place) for place in sorted(folder.glob("*-steps"), reverse=True)]


def bundled_cost(name: str) -> dict[str, float]:
    """Seconds, forwards and updates that the training of a bundled model took.

    name  digits-teacher or digits-guided
    """
    with as_file(files("halfstep") / "assets" / name / "cost.json") as path:
        return storage.read_json(path, dict[str, float])
