"""The English of the package: short first sentences, and none of the words that a stranger must translate."""

import ast
import re
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "halfstep").rglob("*.py"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MOST = 25
"""Words of the first sentence of a docstring."""
RIDDLES = re.compile(r"\bwhoever\b|\bof which\b|\bthere is none\b|\bone's own\b", re.IGNORECASE)
OLD = re.compile(
    r"\b(?:made_for|own_sampler|hold_to_kinds|carried_(?:out|through)|put_out|guidance=)"
    r"|--(?:rate|clip|known|guidance|classes|scales)\b(?![-\w])"
)
"""Names of 0.1.0."""


def docstrings(path):
    """The docstrings of a module, its classes and its functions, and of the fields of its classes."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            if text := ast.get_docstring(node):
                yield text
            for name, text in pairwise(node.body):
                stated = isinstance(name, ast.Assign | ast.AnnAssign) and isinstance(text, ast.Expr)
                if stated and isinstance(text.value, ast.Constant):
                    yield str(text.value.value)


def first_sentence(text):
    return re.split(r"(?<=[.!?:;])\s", " ".join(text.split("\n\n")[0].split()))[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_docstrings_begin_with_a_short_sentence(path):
    long = [text for text in docstrings(path) if len(first_sentence(text).split()) > MOST]
    assert not long
    assert not [text for text in docstrings(path) if RIDDLES.search(text)]


@pytest.mark.parametrize(
    "path", [*FILES, *PAGES], ids=lambda path: path.relative_to(ROOT).as_posix()
)
def test_no_name_of_the_first_version_is_left(path):
    assert not OLD.findall(path.read_text(encoding="utf-8"))
