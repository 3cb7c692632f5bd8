"""Options of another kind are refused where they are given, in one sentence, by every method."""

import json
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, Literal, Union

import numpy as np
import pytest
import torch
from annotated_types import Ge, Gt, Le, Lt

from halfstep import methods, TrainingConfig
from halfstep.config.validate import describe, is_valid, shown, validate, Validated
from halfstep.data import Augmentation
from halfstep.data.latents.encoding import Layout
from halfstep.diffusion.denoiser import NetTime
from halfstep.diffusion.schedules import SCHEDULES
from halfstep.errors import ConfigError
from halfstep.evaluation import Evaluation
from halfstep.evaluation.gate_metrics import GuidedTeacherRatio
from halfstep.evaluation.quality_gate import QualityGate
from halfstep.methods import KnowledgeDistillation, Progressive, Shrink
from halfstep.methods.autoencoding import Autoencoding
from halfstep.methods.classifiers import terms
from halfstep.methods.classifiers.feature_terms import FeatureMatch
from halfstep.methods.classifiers.supervised import Classification
from halfstep.methods.classifiers.terms import SoftTargets, Term
from halfstep.methods.classifiers.weight_schedules import Linear
from halfstep.methods.diffusion.chain import ChainOptions
from halfstep.methods.diffusion.guided import GuidedOptions
from halfstep.models.classifiers.preprocessing import Preprocessing

METHODS = [getattr(methods, name) for name in methods.__all__]
METHODS = [one for one in METHODS if isinstance(one, type) and hasattr(one, "__post_init__")]
for one in (methods.Chain, methods.StagePlan):  # which have methods alone, and no defaults
    METHODS.remove(one)
METHODS += [Autoencoding, ChainOptions, Classification, GuidedOptions, TrainingConfig]
NEEDED = {Linear: ("start", "stop"), Augmentation: ("steps",), Shrink: (), ChainOptions: ()}
TERMS = [*vars(terms).values(), FeatureMatch]
TERMS = [
    one for one in TERMS if isinstance(one, type) and issubclass(one, Term) and one is not Term
]
NEEDED |= {FeatureMatch: ("pairs",)}


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: Progressive(start="8"), "start is a whole number, got '8': write for example 64"),
        (lambda: Progressive(start=8.0), "start is a whole number, got 8.0"),
        (lambda: Progressive(start=np.float32(8)), "start is a whole number, got 8.0"),
        (lambda: Progressive(grid=np.array(["karras"] * 2)), "there is no grid"),
        (lambda: Progressive(updates=5), r"a whole number each, got 5: write for example \(5,\)"),
        (lambda: Progressive(updates=(5, "6")), r"a whole number each, got \(5, '6'\)"),
        (lambda: Progressive(grid="karas"), "there is no grid 'karas': perhaps you meant 'karras'"),
        (lambda: Shrink(depth="2"), "depth is a whole number, got '2'"),
        (lambda: Shrink(depth=2, denoising="0"), "denoising is a number, got '0'"),
        (lambda: Shrink(student="embed_dim 32"), "a table of names and values, got 'embed_dim 32'$"),
        (lambda: TrainingConfig(batch_size=6.5), "batch_size is a whole number, got 6.5: .* 128"),
        (lambda: TrainingConfig(batch_size=True), "batch_size is a whole number, got True"),
        (lambda: TrainingConfig(learning_rate="fast"), "learning_rate is a number, got 'fast': .* 0.0003"),
        (lambda: TrainingConfig(learning_rate=torch.ones(2)), r"learning_rate is a number, got \[1.0, 1.0\]"),
        (lambda: Shrink(keep=1), r"keep is a list, a whole number each, got 1: write for example \(1,\)$"),
        (lambda: TrainingConfig(compile=1), "compile is true or false, got 1$"),
        (lambda: TrainingConfig(betas=(0.9,)), "betas is a list of 2, a number each"),
        (lambda: TrainingConfig(precision="fp61"), "no precision 'fp61': perhaps you meant 'fp16'"),
        (lambda: KnowledgeDistillation(terms=SoftTargets()), "terms is a list, a Term each"),
        (lambda: Classification(label_smoothing=None), "label_smoothing is a number, got None"),
        (lambda: SoftTargets(weight="1"), "weight is a number or a Linear, got '1'"),
        (lambda: SoftTargets(form="kll"), "there is no form 'kll': perhaps you meant 'kl'"),
        (lambda: FeatureMatch(pairs=(("a",),)), "pairs name a part"),
        (lambda: FeatureMatch(pairs=("ab", "cd")), "pairs name a part"),
        (lambda: FeatureMatch(pairs=("a", "b")), r'write for example \[\["hidden", "hidden"\]\]' ),
    ],
)  # fmt: skip
def test_what_is_of_another_kind(made, message):
    with pytest.raises(ConfigError, match=message):
        made()


def test_what_is_of_the_kind():
    assert type(TrainingConfig(learning_rate=1, betas=[0, 0.9]).learning_rate) is int
    Shrink(depth=2, denoising=None, student={}), Shrink(student={"embed_dim": 32})
    KnowledgeDistillation(terms=[SoftTargets(weight=Linear(1.0, 0.0))])


def test_lists_and_what_numpy_and_torch_have_become_pythons_own():
    times = np.linspace(1, 0, 9, dtype=np.float32)
    method = Progressive(start=np.int64(8), updates=[np.int64(5)], times=times)
    plain = Progressive(start=8, updates=(5,), times=tuple(times.tolist()))
    assert method == plain and hash(method) == hash(plain) and type(method.start) is int
    assert Progressive(start=8, times=torch.from_numpy(times)).times == plain.times
    settings = TrainingConfig(
        learning_rate=np.float32(0.5), seed=np.int64(3), ema=torch.tensor(0.5)
    )
    assert json.loads(json.dumps(asdict(settings))) == asdict(settings) | {"betas": [0.9, 0.999]}
    assert FeatureMatch(pairs=[["a", "b"]]).pairs == (("a", "b"),)


def test_types_of_a_users_own_that_cannot_be_looked_at():
    @dataclass(frozen=True, kw_only=True)
    class Own(SoftTargets):
        anything: Any = 1
        numbers: list[float] = ()
        read: Callable[[int], int] = None
        where: Sequence[str] = ()

    assert Own(numbers=3, read=len).temperature == SoftTargets().temperature
    with pytest.raises(ConfigError, match="temperature is a number, got '4'"):
        Own(temperature="4")

    @dataclass(frozen=True, kw_only=True)
    class Later(SoftTargets):
        more: "NotHere" = None  # noqa: F821  # as a name that is imported for type checkers alone

    assert Later(more=1).more == 1


@pytest.mark.parametrize("method", METHODS, ids=lambda one: one.__name__)
def test_every_method_looks_at_every_option(method):
    """An object is of no option's kind."""
    for option in fields(method):
        with pytest.raises(ConfigError, match=option.name):
            method(**{option.name: object()})


def test_kinds_in_words():
    @dataclass
    class Options(Validated):
        must: int
        path: Path = Path("a")
        way: Literal["up", 2] = "up"
        pairs: tuple[tuple[str, str], ...] = ()
        more: dict[str, str] = field(default_factory=dict)
        maybe: float | None = None

    Options(3, "b", 2, [("a", "b")], {"x": 1}, 4)
    assert describe(tuple[tuple[str, str], ...]) == "a list of which each is a list of 2, text each"
    assert describe(Literal["up", 2]) == "one of up, 2"
    choice = Literal[1, 2]
    assert not is_valid(True, choice) and not is_valid("2", choice) and is_valid(2, choice)
    assert not is_valid(None, int) and not is_valid(("a", "b"), tuple[tuple[str, str], ...])
    with pytest.raises(ConfigError, match=r"^must is a whole number, got None$"):
        Options(None)
    with pytest.raises(ConfigError, match=r"^maybe is a number, got 'a': write for example 1$"):
        Options(3, maybe="a")


NAN = float("nan")
ENDLESS = [
    NAN,
    float("inf"),
    float("-inf"),
    10**400,
    np.float32("nan"),
    torch.tensor(torch.inf),
]
OPTIONS = [
    *METHODS, *(Linear, NetTime, Evaluation, Augmentation, Layout, Preprocessing),
    *(QualityGate, GuidedTeacherRatio, *SCHEDULES.values()), *(one for one in TERMS if isinstance(one, type)),
]  # fmt: skip


def numbers(hint):
    """Whether a type has a number in it, and as how many of a list."""
    hint = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    if hint in (int, float):
        return 0
    if get_origin(hint) in (Union, types.UnionType):
        return next((n for n in map(numbers, get_args(hint)) if n is not None), None)
    inner = get_args(hint)
    if get_origin(hint) is tuple and numbers(inner[0]) == 0:
        return 1 if inner[1:] == (...,) else len(inner)
    return None


@pytest.mark.parametrize("kind", OPTIONS, ids=lambda one: one.__name__)
def test_every_number_of_every_option_is_finite(kind):
    hints = typing.get_type_hints(kind, include_extras=True)
    for option in fields(kind):
        if (many := numbers(hints[option.name])) is None:
            continue
        for value in ENDLESS:
            given = {"start": 1.0, "stop": 1.0, "steps": ("flip",), "pairs": (("a", "b"),)}
            given = {k: v for k, v in given.items() if k in NEEDED.get(kind, ())}
            with pytest.raises(ConfigError, match=option.name):
                kind(**{**given, option.name: (value,) * many if many else value})


@dataclass(frozen=True)
class Bounded(Validated):
    share: Annotated[float, Ge(0), Lt(1)] = 0.5
    size: Annotated[int, Gt(0), Le(8)] | None = None
    ends: tuple[Annotated[float, Ge(0)], ...] = (1.0,)
    pairs: tuple[tuple[Annotated[int, Ge(2)], str], ...] = ()
    either: Annotated[int, Le(3)] | str = 1


@pytest.mark.parametrize(
    "given",
    [
        {"share": 0}, {"share": 0.999}, {"size": None}, {"size": 8}, {"size": 1}, {"ends": ()},
        {"ends": (0, 5.0)}, {"pairs": ((2, "a"),)}, {"either": "long"}, {"either": -7},
    ],
)  # fmt: skip
def test_within_bounds(given):
    Bounded(**given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"share": 1}, "share must be at least 0 and below 1, got 1: write for example 0.5"),
        ({"share": -1e-9}, "share must be"),
        ({"size": 0}, "size must be above 0 and at most 8, got 0$"),
        ({"size": 9}, "size must be"),
        ({"ends": (1.0, -1.0)}, r"each of ends must be at least 0, got \(1.0, -1.0\)"),
        ({"pairs": ((2, "a"), (1, "b"))}, "pairs must be at least 2"),
        ({"either": 4}, "either must be at most 3"),
    ],
)
def test_out_of_bounds(given, message):
    with pytest.raises(ConfigError, match=message):
        Bounded(**given)


def test_numbers_of_many_digits_are_shown_short():
    assert shown(10**400) == "2^1328 or more" and shown(-(2**64)) == "-2^64 or more"
    assert shown(2**63) == str(2**63) and shown(0.5) == "0.5" and shown("a") == "'a'"
    assert is_valid(2**64 - 1, int) and not is_valid(2**64, int) and not is_valid(-(2**64), float)
    assert shown((10**5000, [-(10**400)], {"a": 10**400}, "b", np.float32(0.5), True)) == (
        "(2^16609 or more, [-2^1328 or more], {'a': 2^1328 or more}, 'b', "
        f"{np.float32(0.5)!r}, True)"
    )
    assert shown((1,)) == "(1,)" and len(shown("a" * 10_000)) == len(shown("b" * 10**6)) == 200


Pairs = tuple[tuple[float, ...], ...]


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (((NAN, 0.0),), Pairs), (((1.0, 0.0), (1.0, 10**400)), Pairs), ([[1.0, [NAN]]], Pairs),
        ((10**5000,), tuple[int, ...]), ({"a": [10**5000]}, int), ({"a": NAN}, float),
        (np.array([[NAN, 0.0]]), Pairs),
    ],
)  # fmt: skip
def test_numbers_within_are_finite_and_shown_short(value, hint):
    with pytest.raises(
        ConfigError, match=r"^times is .*, finite and of at most 64 bits, got "
    ) as caught:
        validate("times", value, hint)
    assert len(str(caught.value)) < 200


def test_no_name_is_a_number_of_many_digits():
    with pytest.raises(ConfigError, match=r"there is no grid '2.16609 or more'"):
        Progressive(grid=10**5000)
    with pytest.raises(ConfigError, match=r"updates is a list.*, got \(2.16609 or more,\)"):
        Progressive(updates=(10**5000,))


def test_a_bound_of_all_items_is_said_once():
    with pytest.raises(ConfigError, match=r"must be at least 0, got \(-1\.0, 4\.0\)"):
        GuidedOptions(guidance_range=(-1.0, 4.0))
