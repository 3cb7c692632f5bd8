"""Runs tell apart methods, networks and functions of the user, by their code and what it holds."""

from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from halfstep import (
    distill,
    Progressive,
)
from halfstep.code_identity import identity, options_of
from halfstep.errors import ConfigError
from halfstep.methods.base import Method
from halfstep.methods.classifiers.supervised import Classification
from halfstep.methods.classifiers.terms import SoftTargets
from halfstep.methods.stages import Stage, StagePlan
from halfstep.training.trainable import identity_of
from tests.support.user_networks import classifier, FEW, HALVE, pipeline, points, Towards


@dataclass(frozen=True)
class Nought(Method):
    updates: int = 2

    def plan(self, teacher):
        return [StagePlan("mine", 2)]

    def stages(self, teacher):
        yield Stage("mine", teacher.denoiser.trainable_copy(), Towards(0.0), self.updates)


@dataclass(frozen=True)
class Seven(Method):
    updates: int = 2

    def plan(self, teacher):
        return [StagePlan("mine", 2)]

    def stages(self, teacher):
        yield Stage("mine", teacher.denoiser.trainable_copy(), Towards(7.0), self.updates)


@dataclass(frozen=True)
class Any(Method):
    """Its objective is made by what it holds."""

    make: object = field(default=Towards)

    def plan(self, teacher):
        return [StagePlan("mine", 2)]

    def stages(self, teacher):
        yield Stage("mine", teacher.denoiser.trainable_copy(), self.make(), 2)


@dataclass(frozen=True)
class Goal:
    goal: float

    def objective(self):
        return Towards(self.goal)


class Bare(Method):
    """No dataclass."""

    def __init__(self, goal):
        self.goal = goal

    def plan(self, teacher):
        return [StagePlan("mine", 2)]

    def stages(self, teacher):
        yield Stage("mine", teacher.denoiser.trainable_copy(), Towards(self.goal), 2)


def closure(goal):
    return lambda: Towards(goal)


PAIRS = {
    "num_classes": (Nought(), Seven()),
    "lambdas on one line": (Any(lambda: Towards(0.0)), Any(lambda: Towards(7.0))),
    "closures": (Any(closure(0.0)), Any(closure(7.0))),
    "partials": (Any(partial(Towards, 0.0)), Any(partial(Towards, 7.0))),
    "bound methods": (Any(Goal(0.0).objective), Any(Goal(7.0).objective)),
    "attributes": (Bare(0.0), Bare(7.0)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_two_methods_of_ones_own_are_two(tmp_path, name):
    one, other = PAIRS[name]
    teacher = pipeline()
    first = distill(teacher, points(), tmp_path / "r", method=one, training=FEW)
    again = distill(teacher, points(), tmp_path / "r", method=one, training=FEW)
    for a, b in zip(first.denoiser.parameters(), again.denoiser.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(ConfigError, match="choose another"):
        distill(teacher, points(), tmp_path / "r", method=other, training=FEW)


def made_from(source):
    """Objects of code that lies in no file."""
    space = {"__name__": "notebook"}
    exec(source, space)
    return space


@pytest.mark.parametrize(
    "one, other",
    [
        ("def f(x): return x + 1", "def f(x): return x + 2"),
        ("def f(x, y=1): return x", "def f(x, y=2): return x"),
        ("def f(x): return x.sum()", "def f(x): return x.mean()"),
        ("class f:\n def g(self): return 1", "class f:\n def g(self): return 2"),
        ("class f:\n g = 1", "class f:\n g = 2"),
        (
            "class f:\n @property\n def g(self): return 1",
            "class f:\n @property\n def g(self): return 2",
        ),
        (
            "class f:\n @staticmethod\n def g(): return 1",
            "class f:\n @staticmethod\n def g(): return 2",
        ),
        ("def g(): return 1\ndef f(): return g()", "def g(): return 2\ndef f(): return g()"),
        ("class g:\n a = 1\nclass f(g): pass", "class g:\n a = 2\nclass f(g): pass"),
        ("def f(): return [h for h in {'a', 'b'}]", "def f(): return [h for h in {'a', 'c'}]"),
    ],
)
def test_code_without_a_file_is_told_apart_by_what_python_made_of_it(one, other):
    first, second = made_from(one)["f"], made_from(one)["f"]
    assert identity(first) == identity(second) != identity(made_from(other)["f"])


def test_of_halfsteps_own_and_installed_code_the_name_says_enough():
    assert options_of(HALVE) == {**vars(HALVE), "updates": [2, 2], "times": []}
    assert identity(torch.relu).endswith("relu") and "code" not in identity(Progressive)
    assert identity(Any(np.float32(2))) == identity(Any(2.0)) != identity(Any(torch.tensor(2.0)))


def test_own_terms_networks_and_augmented_objectives_are_in_it(tmp_path):
    class Mine(SoftTargets):
        def __call__(self, inputs):
            return super().__call__(inputs) * 2

    assert Mine().describe()["code"] and "code" not in SoftTargets().describe()
    stage = Stage("s", classifier(), Towards(1.0), 1)
    identity_parts = identity_of(stage)
    assert (
        any("Named" in code for code in identity_parts["network"])
        and "goal" in identity_parts["objective"]
    )
    assert identity_of(Stage("s", nn.Linear(2, 2), Classification(), 1)) == {}


class Shift:
    def __init__(self, by):
        self.by = by

    def move(self, x, scale=1):
        return self.by + scale * x


def closed_over(by):
    def move(x):
        return x + by

    return move


PLUS, MINUS = (lambda x: x + 1), (lambda x: x - 1)  # on one line, whose source is that of both
OTHERS = {
    "closure": (closed_over(1), closed_over(2)),
    "lambda": (PLUS, MINUS),
    "arguments of a partial": (partial(Shift.move, Shift(1)), partial(Shift.move, Shift(2))),
    "keywords of a partial": (partial(Shift.move, scale=1), partial(Shift.move, scale=2)),
    "bound method": (Shift(1).move, Shift(2).move),
}


@pytest.mark.parametrize("one, other", OTHERS.values(), ids=OTHERS)
def test_what_a_function_holds_is_part_of_it(one, other):
    assert identity(one) == identity(one) != identity(other)
