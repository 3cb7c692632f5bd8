"""What `import halfstep` offers: few names, all there, all documented, none of them heavy to ask for."""

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import halfstep
from halfstep.diffusion import analytic
from halfstep.diffusion.prediction import Parameterisation
from halfstep.diffusion.schedules import Schedule
from halfstep.methods import Method

AT_MOST = 50


def typed():
    """The names that type checkers see: those under `if TYPE_CHECKING`."""
    tree = ast.parse(Path(halfstep.__file__).read_text())
    blocks = [node for node in tree.body if isinstance(node, ast.If)]
    assert [ast.unparse(block.test) for block in blocks] == ["TYPE_CHECKING"]
    imports = {}
    for node in blocks[0].body:
        assert isinstance(node, ast.ImportFrom)
        for alias in node.names:
            imports[alias.asname or alias.name] = (node.module, alias.name)
    return imports


def test_the_list_is_complete_sorted_and_short():
    assert set(halfstep.__all__) == set(halfstep._HOME) == set(typed())
    assert len(halfstep.__all__) == len(set(halfstep.__all__)) <= AT_MOST
    assert list(halfstep._HOME) == sorted(halfstep._HOME)


@pytest.mark.parametrize("name", halfstep.__all__)
def test_every_name_is_what_type_checkers_think(name):
    home, original = typed()[name]
    thing = getattr(halfstep, name)
    assert thing is getattr(importlib.import_module(home), original)
    assert thing.__module__.startswith("halfstep.")


@pytest.mark.parametrize("name", halfstep.__all__)
def test_every_name_is_documented(name):
    thing = getattr(halfstep, name)
    doc = thing.__doc__ or ""
    assert len(doc) > 15 and not doc.startswith(f"{name}("), f"{name} has no docstring of its own"
    if inspect.isclass(thing):
        for member, value in vars(thing).items():
            if inspect.isfunction(value) and not member.startswith("_") and member not in TORCHS:
                inherited = any(hasattr(protocol, member) for protocol in PROTOCOLS)
                assert value.__doc__ or inherited, member


TORCHS = {"forward", "to"}
"""Members that mean what they mean in torch."""
PROTOCOLS = (Method, Parameterisation, Schedule)
"""They document what each of their members does, once."""


@pytest.mark.parametrize("name", halfstep.__all__)
def test_every_name_can_be_imported_from_the_top(name):
    space = {}
    exec(f"from halfstep import {name}", space)
    assert space[name] is getattr(halfstep, name)


def test_what_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Halver'"):
        halfstep.Halver  # noqa: B018
    assert not hasattr(halfstep, "load")


def test_after_two_arguments_all_are_named():
    """Nobody should have to count: the rest of a function's arguments are keyword-only."""
    for name in halfstep.__all__:
        thing = getattr(halfstep, name)
        if not inspect.isfunction(thing):
            continue
        positional = [
            p
            for p in inspect.signature(thing).parameters.values()
            if p.kind is p.POSITIONAL_OR_KEYWORD and p.default is not p.empty
        ]
        assert len(positional) <= 1, name


def test_importing_halfstep_imports_no_torch():
    code = (
        "import sys\nimport halfstep\nfrom halfstep import errors\n"
        "heavy = {'torch', 'numpy', 'diffusers', 'tyro', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert halfstep.HalfstepError is errors.HalfstepError and 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_the_version_is_said_in_one_place():
    import tomllib

    project = tomllib.loads((Path(halfstep.__file__).parents[1] / "pyproject.toml").read_text())
    version = project["tool"]["setuptools"]["dynamic"]["version"]
    assert version == {"attr": "halfstep.version.__version__"}
    assert project["project"]["dynamic"] == ["version"]
    assert halfstep.__version__ == halfstep.version.__version__


@pytest.mark.parametrize(
    "folder",
    ["methods.losses", "models", "diffusion.samplers", "methods", "data", "training", "evaluation"],
)
def test_a_folders_own_list_holds(folder):
    module = importlib.import_module(f"halfstep.{folder}")
    assert len(module.__all__) == len(set(module.__all__))
    for name in module.__all__:
        assert hasattr(module, name), name


def test_the_analytic_teachers_are_documented():
    for name, thing in vars(analytic).items():
        own = getattr(thing, "__module__", "") == "halfstep.diffusion.analytic"
        if own and not name.startswith("_") and callable(thing):
            assert thing.__doc__, name
