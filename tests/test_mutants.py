"""The list of mutants fits the source: `python -m tests.mutants` runs them."""

import ast
from functools import cache

import pytest
from jinja2 import Environment

from tests.mutants import Mutant, MUTANTS, ROOT
from tests.mutants.running import Place, verdict

FOLDERS = (
    "diffusion/schedules",
    "diffusion/prediction",
    "diffusion/loss_weighting",
    "diffusion/time_grids",
    "diffusion/denoiser",
    "diffusion/samplers",
    "rng",
    "methods/losses",
    "methods/diffusion",
    "methods/classifiers",
)


@cache
def read(file):
    source = (ROOT / file).read_text()
    return source, program(file, source)


def program(file, source):
    """What the source means, whatever its spaces and comments are."""
    if file.endswith(".j2"):
        return repr(Environment().parse(source))
    return ast.dump(ast.parse(source))


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_mutant_is_there_and_is_another_program(mutant):
    source, meant = read(mutant.file)
    mutated = mutant.applied(source)  # raises unless its text occurs exactly once
    assert program(mutant.file, mutated) != meant
    assert all((ROOT / test).exists() for test in mutant.tests) and mutant.tests


def test_every_floor_of_the_mathematics_has_mutants():
    assert len(MUTANTS) >= 40
    names = [mutant.name for mutant in MUTANTS]
    assert len(set(names)) == len(names)
    for folder in FOLDERS:
        assert any(m.file.startswith(f"halfstep/{folder}") for m in MUTANTS), folder


def test_text_that_is_not_there_once_is_refused():
    mutant = Mutant("halfstep/x.py", "a", "b", ("tests/test_x.py",))
    assert mutant.applied("1 + a") == "1 + b"
    for source in ("1 + 2", "a + a"):
        with pytest.raises(ValueError, match="and not once: a"):
            mutant.applied(source)


@pytest.mark.slow
def test_a_mutant_is_killed_survives_or_is_broken(tmp_path):
    """On a package of one line: the runner tells the outcomes apart and mends what it changed."""
    (tmp_path / "sum.py").write_text("def two():\n    return 1 + 1\n")
    (tmp_path / "test_sum.py").write_text(
        "from sum import two\n\ndef test_two():\n    assert two() == 2\n"
    )
    tests, place = ("test_sum.py",), Place(tmp_path)
    try:
        assert place.pytest(tests)[0] == 0
        for new, outcome in (("1 - 1", "killed"), ("1 * 2", "survived"), ("1 +", "broken")):
            assert verdict(Mutant("sum.py", "1 + 1", new, tests), place) == outcome
        assert verdict(Mutant("sum.py", "2 + 2", "5", tests), place) == "gone"
    finally:
        place.close()
    assert (tmp_path / "sum.py").read_text() == "def two():\n    return 1 + 1\n"
