"""Imports go down: a module imports from its own folder or from a floor strictly below; no circles."""

import ast
from pathlib import Path

import pytest

# docs/explain/architecture.md.  `presets` and `assets` hold no code.
GROUND = [
    ["version", "errors", "progress", "identity", "code_identity", "rng", "quiet"],
    ["config", "capacity", "division", "extras", "files", "pixels"],
    ["schema", "batch", "folder_lock", "pictures"],
    ["storage", "config.toml"],
]
FLOORS = [
    ["diffusion"],
    ["models"],
    ["data"],
    ["methods", "pipeline"],
    ["training"],
    ["evaluation"],
    ["hub", "report"],
    ["workflows"],
    ["cli"],
    ["__main__"],
]
FLOOR = {
    name: floor
    for floor, names in enumerate(GROUND + FLOORS, start=1 - len(GROUND))
    for name in names
}
# A folder in a folder imports from its parent's files, and of the others beside it from these alone.
BESIDE = {
    "cli/commands": {"console"},
    "data/latents": {"sources"},
    "data/walks": {"latents"},
    "diffusion/samplers": {"schedules"},
    "diffusion/schedules": set(),
    "evaluation/features": set(),
    "evaluation/metrics": set(),
    "methods/classifiers": {"losses"},
    "methods/diffusion": {"losses"},
    "models/autoencoder": set(),
    "models/classifiers": {"compression"},
    "models/compression": set(),
    "models/uvit": set(),
    "pipeline/to_comfyui": {"from_diffusers"},
    "pipeline/to_diffusers": {"from_diffusers"},
    "report/plots": {"images", "words"},
    "training/classifiers": {"checks"},
}
PACKAGE = Path(__file__).parents[1] / "halfstep"
FILES = sorted(PACKAGE.rglob("*.py"))
BANNED = {"utils", "helpers", "common", "misc", "manager"}


def imported(source):
    """(line, dotted name) of everything a source imports, wherever in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            if base in ("halfstep", "."):  # from halfstep import samplers
                yield from ((node.lineno, f"{base.rstrip('.')}.{a.name}") for a in node.names)
            else:
                yield node.lineno, base


def climbs(home, source):
    """What a source of the module or folder `home` imports that it should not see, in sentences."""
    for line, name in imported(source):
        if name.startswith("."):
            yield f"line {line}: a relative import, {name}: write it from halfstep"
            continue
        top, _, rest = name.partition(".")
        other = floor_of(rest.split("."))
        if top != "halfstep" or other == home:
            continue
        if not other:
            yield f"line {line}: the whole package is imported: name the module"
        elif other not in FLOOR:
            yield f"line {line}: {other} has no floor: give it one in {Path(__file__).name}"
        elif FLOOR[other] >= FLOOR[home]:
            yield (
                f"line {line}: {home} (floor {FLOOR[home]}) imports {other} (floor {FLOOR[other]})"
            )


def floor_of(parts):
    """The name that has the floor: a file's, where it has one of its own in its folder."""
    return two if (two := ".".join(parts[:2])) in FLOOR else parts[0]


def home_of(path):
    return floor_of(path.relative_to(PACKAGE).with_suffix("").parts)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path):
    home = home_of(path)
    if home == "__init__":
        loaded = {name.split(".")[0] for _, name in imported(path.read_text())}
        assert not loaded & {"torch", "numpy", "diffusers"}, "importing halfstep must stay cheap"
        return
    assert home in FLOOR, f"{home} has no floor: give it one in {Path(__file__).name}"
    assert not list(climbs(home, path.read_text()))


def module_of(path):
    """halfstep.data of halfstep/data/__init__.py."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_folders_in_a_folder_see_what_is_listed(path):
    parent, *inner = path.relative_to(PACKAGE).parent.parts or ("",)
    siblings = {d.name for d in (PACKAGE / parent).iterdir() if d.is_dir()} if inner else set()
    allowed = {inner[0], *BESIDE.get(f"{parent}/{inner[0]}", set())} if inner else set()
    for line, name in imported(path.read_text()):
        top, *rest = name.removeprefix("halfstep.").split(".")
        if inner and top == parent and rest and rest[0] in siblings:
            assert rest[0] in allowed, f"line {line}: {name}"


def test_no_circles():
    """Neither between files, wherever in a file an import stands."""
    files = {
        module_of(path): path for path in FILES if path.parent != PACKAGE or path.stem != "__init__"
    }
    graph = {}
    for module, path in files.items():
        graph[module] = {name for name in _modules(path.read_text(), files) if name != module}
    while leaves := [module for module, others in graph.items() if not others & graph.keys()]:
        for module in leaves:
            del graph[module]
    assert not graph


def _modules(source, files):
    """The modules that a source imports, a module named as a part of its folder too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in files else node.module


def test_only_the_command_line_prints():
    for path in FILES:
        tops = {name.split(".")[0] for _, name in imported(path.read_text())}
        assert home_of(path) == "cli" or not tops & {"rich", "tyro"}, path


def test_there_is_something_to_read():
    homes = {home_of(path) for path in FILES}
    assert {"diffusion", "models", "methods", "training", "cli"} <= homes


@pytest.mark.parametrize(
    "home, source, sees",
    [
        ("schema", "from halfstep.diffusion.prediction import V", "floor 1"),
        ("diffusion", "import halfstep.models.mlp", "floor 2"),
        ("training", "from halfstep.evaluation import features", "evaluation"),
        ("training", "def f():\n    from halfstep import cli", "floor 9"),
        ("models", "from halfstep.data import digits", "data"),
        ("rng", "from .batch import Cond", "relative"),
        ("rng", "from . import batch", "relative"),
        ("cli", "from halfstep.nonsense import x", "has no floor"),
        ("cli", "import halfstep", "whole package"),
    ],
)
def test_climbing_is_seen(home, source, sees):
    [climb] = climbs(home, source)
    assert sees in climb


@pytest.mark.parametrize(
    "home, source",
    [
        (
            "methods",
            "from halfstep.diffusion.denoiser import Denoiser\nimport halfstep.diffusion.samplers",
        ),
        ("methods", "from halfstep.methods.stages import Stage"),
        ("cli", "from halfstep.version import __version__\nimport torch\nimport halfstepping"),
    ],
)
def test_going_down_is_allowed(home, source):
    assert not list(climbs(home, source))


def test_accelerate_is_imported_in_one_file():
    users = {
        str(path.relative_to(PACKAGE))
        for path in FILES
        if any(name.split(".")[0] == "accelerate" for _, name in imported(path.read_text()))
    }
    assert users <= {"training/distributed.py"}


def test_no_file_for_whatever_has_no_name():
    everywhere = [*FILES, *Path(__file__).parent.rglob("*.py")]
    assert not [path for path in everywhere if path.stem in BANNED]


def test_no_torchvision_and_no_timm():
    """Next to a CPU build of torch they replace or break it."""
    for path in FILES:
        tops = {name.split(".")[0] for _, name in imported(path.read_text())}
        assert not tops & {"torchvision", "timm"}, path
