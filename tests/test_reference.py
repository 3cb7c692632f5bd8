"""The reference has every public name, with its arguments, the shapes of its tensors and its errors."""

import ast
import builtins
import importlib
import inspect
import re
import sys
import textwrap
from dataclasses import is_dataclass
from functools import cached_property

import pytest
from torch import nn

import halfstep
from halfstep import errors
from tests.support.docs import ROOT

sys.path.insert(0, str(ROOT / "docs" / "extensions"))
from docstrings import arguments, documented, type_text

sys.path.pop(0)
PAGES = sorted((ROOT / "docs" / "reference").glob("*.rst"))
DIRECTIVE = re.compile(r"^\.\. auto(?:class|function|exception):: ([\w.]+)$", re.MULTILINE)
LISTED = [name for page in PAGES for name in DIRECTIVE.findall(page.read_text())]
SHAPE = re.compile(r"\[(?!-)[^\]]*(?:[A-Za-z]|\.\.\.)[^\]]*\]")
"""Brackets with a letter or dots in them, [B, C, H, W] or [...], unlike an interval such as [-1, 1]."""
SILENT = {"HalfstepError", "Progress"}
"""An error, and a protocol that raises nothing."""
METHODS = {
    f"{name}.{member}": value
    for name in halfstep.__all__
    if inspect.isclass(kind := getattr(halfstep, name))
    for member, value in vars(kind).items()
    if not member.startswith("_") and not isinstance(value, property | cached_property)
    if inspect.isroutine(value) and not (issubclass(kind, nn.Module) and member == "forward")
}
METHODS = {name: getattr(m, "__func__", m) for name, m in METHODS.items() if m.__doc__}
THINGS = {**{name: getattr(halfstep, name) for name in halfstep.__all__}, **METHODS}
every_name = pytest.mark.parametrize("name", halfstep.__all__)
every_thing = pytest.mark.parametrize("name", THINGS)


@every_name
def test_the_reference_has_every_public_name(name):
    assert LISTED.count(f"halfstep.{name}") == 1


@pytest.mark.parametrize("name", LISTED)
def test_what_the_reference_has_exists_and_is_in_its_pages_table(name):
    module, _, last = name.rpartition(".")
    assert getattr(importlib.import_module(module), last).__doc__
    [page] = [page for page in PAGES if name in DIRECTIVE.findall(page.read_text())]
    assert f"   ~{name}\n" in page.read_text()


@every_thing
def test_every_argument_is_documented_and_no_other(name):
    thing = THINGS[name]
    table = arguments(thing)
    assert not [argument.name for argument in table if not argument.text]
    assert documented(thing.__doc__).arguments.keys() <= {argument.name for argument in table}


@every_thing
def test_every_tensor_has_its_shape(name):
    """Each argument that may be a tensor; and a result that is one, in its sentence or under Returns."""
    for argument in arguments(THINGS[name]):
        if re.search(r"\bTensor\b", type_text(argument.annotation)):
            assert SHAPE.search(argument.text), argument.name
    if inspect.isfunction(THINGS[name]):
        result = inspect.signature(THINGS[name]).return_annotation
        doc = documented(THINGS[name].__doc__)
        if re.search(r"\bTensor\b", type_text(result)):
            assert SHAPE.search(doc.returns + doc.summary + doc.body)


@every_name
def test_every_name_says_its_errors(name):
    raises = documented(THINGS[name].__doc__).raises
    assert (name in SILENT) == (not raises)


@every_thing
def test_errors_exist_have_reasons_and_are_those_that_are_raised(name):
    raises = documented(THINGS[name].__doc__).raises
    for error, reason in raises.items():
        assert issubclass(getattr(errors, error, getattr(builtins, error, object)), Exception)
        assert len(reason.split()) >= 3, error
    assert raised(THINGS[name]) <= raises.keys()


def raised(thing):
    """The classes of halfstep's errors that its body raises; of a dataclass, when it is made."""
    source = inspect.unwrap(thing)
    if is_dataclass(thing):
        source = vars(thing).get("__post_init__")
    elif inspect.isclass(thing):
        source = vars(thing).get("__init__")
    if source is None or not inspect.isfunction(source):
        return set()
    found = set()
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(source)))):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            called = ast.unparse(node.exc.func)
            found.add("ConfigError" if called == "unknown" else called)
    return {called for called in found if hasattr(errors, called)}


def test_the_check_sees_what_is_missing():
    def wrong(x, rows, device="cpu"):
        """Something.

        Args:
            x: a tensor.
            row: a row.
        """
        raise errors.ConfigError("no")

    wrong.__annotations__ = {"x": halfstep.Dataset}
    names = [argument.name for argument in arguments(wrong) if not argument.text]
    assert names == ["rows", "device"]
    assert documented(wrong.__doc__).arguments.keys() == {"x", "row"}
    assert not SHAPE.search("a tensor.") and SHAPE.search("float [B, C, H, W]")
    assert not SHAPE.search("in [-1, 1] or [0, 1]") and not SHAPE.search("to [-clip, clip]")
