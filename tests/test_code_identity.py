"""Code of a user's own: no two pieces have one identity, and one has the same in every process."""

import json
import logging
import os
import subprocess
import sys
from functools import cached_property, partial, wraps
from types import MethodType

import pytest
import torch

from halfstep.batch import Cond
from halfstep.code_identity import holds_user_code, identity, is_user_code, options_of
from halfstep.diffusion.time_grids import uniform

TOP = "from dataclasses import dataclass\nfrom enum import Enum\nfrom functools import *\n"
TOP += "from logging import getLogger\nimport abc, re, torch\n"


def made_from(source, path=None):
    """What a module of this source holds; without a path it lies in no file."""
    space = {"__name__": "notebook"}
    if path is not None:
        path.write_text(TOP + source)
    exec(compile(TOP + source, str(path or "<cell>"), "exec"), space)
    return space


PLAIN = "def plain(x): return x\n"
DECORATED = """
def deco(fn):
    @wraps(fn)
    def inner(x):
        return 2 * fn(x)
    return inner
@deco
def f(x):
    return x
"""
OBJECTS = """
class A:
    def __init__(self, k): self.k = k
a, b = A(1), A(2)
g, h = (lambda x: x + 1), (lambda x: x - 1)
kind = lambda k: type("B", (), {"k": k})
one, two = kind(1), kind(2)
"""
SLOTS = "class A:\n __slots__ = ('k', '__own')\n"
SLOTS += " def __init__(self, k, own=0): self.k, self.__own = k, own\n"
DATACLASS = "@dataclass\nclass A:\n k: int = 1\nclass B(A):\n def __init__(self, j): self.j = j\n"
CALLER = """
class Deco:
    def __init__(self, fn, k): self.k = k; update_wrapper(self, fn)
    def __call__(self, x): return self.k * self.__wrapped__(x)
"""
CLASS = "class K:\n def __init__(self, k): self.k = k\n"

PAIRS = {
    "body of a decorator": (DECORATED, DECORATED.replace("2 *", "3 *")),
    "what is decorated": (DECORATED, DECORATED.replace("return x", "return -x")),
    "decorator without a closure": (
        PLAIN + "@wraps(plain)\ndef f(x): return 1",
        PLAIN + "@wraps(plain)\ndef f(x): return 2",
    ),
    "wrapped lambda": (
        PLAIN + "f, g = [wraps(plain)(one) for one in (lambda x: 1, lambda x: 2)]",
        PLAIN + "g, f = [wraps(plain)(one) for one in (lambda x: 1, lambda x: 2)]",
    ),
    "decorator that is an object": (
        CALLER + PLAIN + "f = Deco(plain, 1)",
        CALLER + PLAIN + "f = Deco(plain, 2)",
    ),
    "method that is decorated": (
        OBJECTS + "class B(A):\n @lru_cache\n def m(self): return 1\nf = B(1).m",
        OBJECTS + "class B(A):\n @lru_cache\n def m(self): return 1\nf = B(2).m",
    ),
    "slots": (SLOTS + "f = A(1)", SLOTS + "f = A(2)"),
    "slots with a name of the class": (SLOTS + "f = A(1, 1)", SLOTS + "f = A(1, 2)"),
    "slots of a base": (
        SLOTS + "class B(A): pass\nf = B(1)",
        SLOTS + "class B(A): pass\nf = B(2)",
    ),
    "a dataclass's other attributes": (DATACLASS + "f = B(1)", DATACLASS + "f = B(2)"),
    "constant": ("N = 1\ndef f(x): return x + N", "N = 2\ndef f(x): return x + N"),
    "constant in lower case": ("n = 1\ndef f(): return n", "n = 2\ndef f(): return n"),
    "constant that is a tuple": ("N = 1, 2\ndef f(): return N", "N = 1, 3\ndef f(): return N"),
    "constant that is a tensor": (
        "N = torch.ones(2)\ndef f(): return N",
        "N = torch.zeros(2)\ndef f(): return N",
    ),
    "constant of a comprehension": (
        "N = 1\ndef f(x): return [N for _ in x]",
        "N = 2\ndef f(x): return [N for _ in x]",
    ),
    "constant of a method": (
        "N = 1\nclass f:\n def g(self): return N",
        "N = 2\nclass f:\n def g(self): return N",
    ),
    "what a name of a module is": (
        "one = torch.relu\ndef f(x): return one(x)",
        "one = torch.tanh\ndef f(x): return one(x)",
    ),
    "attribute that is an object": (CLASS + "class f:\n a = K(1)", CLASS + "class f:\n a = K(2)"),
    "attribute that is a frozenset": (
        "class f:\n a = frozenset({1})",
        "class f:\n a = frozenset({2})",
    ),
    "attribute that is a pattern": (
        "class f:\n a = re.compile('a')",
        "class f:\n a = re.compile('b')",
    ),
    "value that is kept": (
        "class f:\n @cached_property\n def g(self): return 1",
        "class f:\n @cached_property\n def g(self): return 2",
    ),
    "what deletes": (
        "class f:\n def g(self): pass\n def d(self): return 1\n g = property(g, None, d)\n del d",
        "class f:\n def g(self): pass\n def d(self): return 2\n g = property(g, None, d)\n del d",
    ),
    "metaclass": (
        "class M(type):\n def g(c): return 1\nclass f(metaclass=M): pass",
        "class M(type):\n def g(c): return 2\nclass f(metaclass=M): pass",
    ),
    "member": ("class E(Enum):\n a = 1\nf = E.a", "class E(Enum):\n a = 2\nf = E.a"),
    "objects again": (OBJECTS + "f = [a, b, a]", OBJECTS + "f = [a, b, b]"),
    "functions again": (OBJECTS + "f = [g, h, g]", OBJECTS + "f = [g, h, h]"),
    "classes again": (OBJECTS + "f = [one, two, one]", OBJECTS + "f = [one, two, two]"),
    "in a set": (OBJECTS + "f = {(a, b), (b, a)}", OBJECTS + "f = {(a, b), (b, b)}"),
    "a list of its own": (
        "class L(list):\n def g(self): return 1\nf = L([1])",
        "class L(list):\n def g(self): return 2\nf = L([1])",
    ),
    "what is in a list of its own": (
        "class L(list): pass\nf = L([1])",
        "class L(list): pass\nf = L([2])",
    ),
    "arguments of a lambda": ("f = lambda x: x", "f = lambda *x: x"),
    "arguments by name alone": (
        "f = eval('lambda a, b: a')",
        "f = eval('lambda a, *, b: a')",
    ),
}


@pytest.mark.parametrize("one, other", PAIRS.values(), ids=PAIRS)
@pytest.mark.parametrize("in_a_file", [True, False])
def test_two_are_two_and_one_is_one(one, other, in_a_file, tmp_path):
    place = (tmp_path / "a.py", tmp_path / "b.py", tmp_path / "c.py") if in_a_file else [None] * 3
    spaces = [made_from(*given) for given in zip((one, one, other), place, strict=True)]
    first, again, changed = (json.dumps(identity(space["f"])) for space in spaces)
    assert first == again != changed


SAME = {
    "another function": ("def g(): return 1\ndef f(): return 0", "def g(): 2\ndef f(): return 0"),
    "an attribute of that name": ("n = 1\ndef f(x): return x.n", "n = 2\ndef f(x): return x.n"),
    "a list that may grow": ("N = [1]\ndef f(): N.append(1)", "N = [2]\ndef f(): N.append(1)"),
    "where a file is": (
        "__file__ = 'a'\ndef f(): return __file__",
        "__file__ = 'b'\ndef f(): return __file__",
    ),
    "a log": (
        "class f:\n log = getLogger('a')",
        "class f:\n log = getLogger('a')\n log.seen = 1",
    ),
}


@pytest.mark.parametrize("one, other", SAME.values(), ids=SAME)
def test_what_it_does_not_read_is_no_part_of_it(one, other):
    assert identity(made_from(one)["f"]) == identity(made_from(other)["f"])


EVERYTHING = (
    DECORATED
    + OBJECTS
    + SLOTS.replace("class A", "class S")
    + """
NAMES = frozenset({"u", "v", "w", "x", "y", "z"})
class Whole(abc.ABC):
    names, of, log = NAMES, {a, b, g, h, f}, getLogger("whole")
    @cached_property
    def kept(self): return NAMES
    def read(self): return [name in {"p", "q", "r", "s"} for name in NAMES]
class Sub(S):
    def __init__(self):
        super().__init__(1, 2)
        self.u = self.v = self.w = {f, g, h, one, two}
        self.by = {f: a, g: b}
f = [Whole, Whole(), Sub(), {Sub(), S(1), a, b}, f, f, torch.float32, {("p", a), ("q", b)}]
"""
)
SCRIPT = """
import json, sys
from tests.test_code_identity import EVERYTHING, made_from
from halfstep.code_identity import identity
junk = [object() for _ in range(int(sys.argv[1]))]
print(json.dumps(identity(made_from(EVERYTHING)["f"])))
"""


def test_it_is_the_same_in_every_process():
    def printed(seed):
        env = {**os.environ, "PYTHONHASHSEED": str(seed)}
        command = [sys.executable, "-c", SCRIPT, str(1000 * seed)]
        return subprocess.run(command, env=env, capture_output=True, check=True, text=True).stdout

    first = printed(1)
    assert first == printed(2) == printed(3)
    assert " at 0x" not in first


def test_a_value_that_was_kept_makes_no_other():
    value = made_from("class A:\n @cached_property\n def g(self): return 1\nf = A()")["f"]
    before = identity(value)
    assert value.g == 1 and identity(value) == before


class Kept:
    @cached_property
    def once(self):
        return 1


def by(k):
    def deco(fn):
        @wraps(fn)
        def inner(x):
            return k * fn(x)

        return inner

    return deco


@torch.no_grad()
def quietly(x):
    return x


@torch.no_grad()
def loudly(x):
    return x + 1


def test_a_decorator_is_own_if_it_or_what_it_is_around_is():
    assert (
        is_user_code(by(2)(torch.relu))
        and is_user_code(quietly)
        and not is_user_code(torch.no_grad()(uniform))
    )
    assert identity(by(2)(uniform)) != identity(by(3)(uniform)) != identity(by(3)(identity))
    assert identity(quietly) != identity(loudly)


def test_what_holds_a_users_own():
    assert holds_user_code(partial(uniform, by)) and holds_user_code(partial(uniform, n=[Kept()]))
    assert holds_user_code(partial(by, 1)) and holds_user_code(MethodType(uniform, Kept()))
    assert not holds_user_code(partial(uniform, 3)) and not holds_user_code(uniform)
    assert not holds_user_code([logging.getLogger("a"), sys, Cond(), torch.ones(2)])


def test_of_halfsteps_own_its_fields_are_said():
    assert options_of(Cond()) == {**dict.fromkeys(vars(Cond())), "added": {}}
