"""Every option of every verb, given what is no value: one sentence and status 2, or a result that is right.

The fast suite asks for the numbers that most runs depend on; the slow one for every option there is.
"""

import json
import shutil
import signal
import typing
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from halfstep.cli import main
from halfstep.cli.commands.completion import CompletionOptions
from halfstep.cli.commands.distill import options_for
from halfstep.cli.commands.evaluate import Evaluate
from halfstep.cli.commands.report import Report
from halfstep.cli.commands.runs import RunsOptions
from halfstep.config.fields import options_of
from halfstep.workflows.compare_classifiers import CompareClassifiersConfig
from halfstep.workflows.compare_config import CompareConfig
from halfstep.workflows.compress import CompressConfig
from halfstep.workflows.demo import DemoConfig
from halfstep.workflows.distill_classifier import DistillClassifierConfig
from halfstep.workflows.encode import EncodeConfig
from halfstep.workflows.exported import ExportConfig
from halfstep.workflows.grid import GridConfig
from halfstep.workflows.latents import LatentsConfig
from halfstep.workflows.sample import SampleConfig
from halfstep.workflows.train_classifier import TrainClassifierConfig
from halfstep.workflows.train_codec import TrainCodecConfig
from halfstep.workflows.train_denoiser import TrainDenoiserConfig
from tests.cli.commands import COMMANDS

VALUES = ("nan", "inf", "-1", "0", "1e400", "", "text")
LIMIT = 60
"""Seconds that nothing here takes, unless it would never end."""
SIZES = {
    "net_config": ("width", "depth", "dim", "nonsense"),
    "schedule_config": ("logsnr_min", "logsnr_max"),
    "student": ("width", "depth"),
    "codec_config": ("layers_per_block", "norm_num_groups"),
    "recipe_config": ("temperature", "soft_weight", "hard_weight"),
}
"""Names within options that are pairs of names and values."""


@dataclass(frozen=True)
class Verb:
    """A command that works, and takes a moment.

    first    its positional argument, a fixture's folder
    options  by name, without the dashes
    copied   it writes into that folder, so that each case has its own
    """

    words: str
    kind: Any
    options: dict[str, str] = field(default_factory=dict)
    first: str = ""
    copied: bool = False


TINY = {"updates": "1", "batch-size": "4", "device": "cpu", "out": "out"}
HALVED = {**TINY, "start": "4", "stop": "2", "tolerance": "0", "samples": "8"}
JUDGED = {
    "samples": "8", "full": "2", "baselines": "ddim", "cost-rounds": "0", "split-samples": "2",
    "shown": "2", "features": "digits", "device": "cpu",
}  # fmt: skip
POINTS = {"data": "two-moons", "teacher": "points"}
DIGITS = {"data": "digits", "teacher": "digits"}


def distilling(name, options):
    return Verb(f"distill {name}", options_for(name), options)


VERBS = [
    Verb("train denoiser", TrainDenoiserConfig, {
        **TINY, "data": "two-moons", "net": "mlp", "net-config": "width 8 depth 1",
    }),
    Verb("train classifier", TrainClassifierConfig, {**TINY, "data": "digits", "net": "toy-student"}),
    Verb("train codec", TrainCodecConfig, {**TINY, "data": "digits", "width": "8"}),
    distilling("progressive", {**HALVED, **POINTS}),
    distilling("flow-map", {**TINY, **POINTS, "start": "4", "first": "2", "stop": "1"}),
    distilling("multistep-consistency", {**TINY, **POINTS, "start": "4", "first": "2", "stop": "1"}),
    distilling("parallel-decoding", {**TINY, **POINTS, "start": "4", "first": "2", "stop": "1"}),
    distilling("cached-walks", {**TINY, **POINTS, "start": "4", "first": "2", "noises": "3"}),
    distilling("stochastic", {**HALVED, **POINTS}),
    distilling("encoder", {**TINY, **POINTS, "start": "4", "stop": "2"}),
    distilling("guided", {
        **HALVED, **DIGITS, "teacher": "guided", "halving-updates": "1", "guidance-embed-dim": "4",
    }),
    distilling("shrink", {**TINY, **DIGITS, "depth": "2"}),
    distilling("plan", {**HALVED, **DIGITS, "depth": "2", "halving-updates": "1"}),
    distilling("reparameterise", {**TINY, **POINTS}),
    Verb("distill knowledge", DistillClassifierConfig, {
        **TINY, "data": "digits", "teacher": "classifier", "net": "toy-student",
    }),
    Verb("compare knowledge", CompareClassifiersConfig, {
        **TINY, "data": "digits", "teacher": "classifier", "net": "toy-student", "seeds": "2",
    }),
    Verb("latents", LatentsConfig, {"data": "digits", "codec": "codec", "out": "out", "device": "cpu"}),
    Verb("sample", SampleConfig, {"n": "2", "steps": "1", "out": "out", "device": "cpu"}, "digits"),
    Verb("encode", EncodeConfig, {
        "n": "2", "steps": "1", "images": "digits", "out": "out.safetensors", "device": "cpu",
    }, "digits"),
    Verb("compare", CompareConfig, {
        **POINTS, "methods": "progressive", "budget": "4000", "batch-size": "4", "start": "4",
        "counts": "2 1", "samples": "8", "full": "2", "shown": "2", "device": "cpu", "out": "out",
    }),
    Verb("evaluate", Evaluate, JUDGED, "students", copied=True),
    Verb("report", Report, {}, "students", copied=True),
    Verb("runs", RunsOptions, {}, "students"),
    Verb("completion", CompletionOptions, {}, "students"),
    Verb("compress", CompressConfig, {**JUDGED, "prune": "0.5"}, "students", copied=True),
    Verb("export", ExportConfig, {"out": "out"}, "students"),
    Verb("grid", GridConfig, {"steps": "4"}, "scheduler"),
    Verb("demo", DemoConfig, {"out": "out", "device": "cpu", "n": "8"}),
]  # fmt: skip
MAIN = {
    "train denoiser": (
        "learning_rate", "max_grad_norm", "weight_decay", "ema", "betas", "batch_size", "updates", "seed",
        "warmup",
        "sampling_clip", "time_scale", "time_offset", "drop_labels", "net_config", "schedule_config",
    ),
    "sample": ("n", "first", "steps", "seed", "guidance_scale", "variance", "batch_size", "out"),
}  # fmt: skip
"""What the fast suite asks about."""


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Runs that the verbs begin with, made once."""
    root = tmp_path_factory.mktemp("fuzzed")
    uvit = "--net-config embed_dim 16 depth 4 num_heads 2 patch_size 4"

    def made(name, words):
        assert main([*words.split(), "--out", str(root / name), "--device", "cpu"]) == 0
        return root / name

    tiny = "--updates 1 --batch-size 8"
    mlp = f"train denoiser --data two-moons --net mlp --net-config width 8 depth 1 {tiny}"
    made("points", mlp)
    made("digits", f"train denoiser --data digits {uvit} {tiny}")
    made("guided", f"train denoiser --data digits --labels --drop-labels 0.1 {uvit} {tiny}")
    made("classifier", f"train classifier --data digits --net toy-student {tiny}")
    made("codec", f"train codec --data digits --width 8 {tiny}")
    halving = "--start 4 --stop 2 --updates 1 --batch-size 8 --tolerance 0"
    made("students", f"distill progressive --teacher {root / 'digits'} --data digits {halving}")
    (root / "scheduler").mkdir()
    (root / "scheduler" / "scheduler_config.json").write_text('{"_class_name": "DDIMScheduler"}')
    return root


class Endless(BaseException):
    """It would never have ended."""


class Began(Exception):
    """The demo is about to begin: its options were taken."""


def asked(name, hint, value):
    """The words after an option's name, one list for each way to give this value."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is dict:
        return [[key, value] for key in SIZES[name]]
    if origin is tuple and inner[1:] != (...,):
        return [[value] * len(inner)]
    return [[value]]


def cases(verb, places, only=(), values=VALUES):
    """(what is tried, the folder before the options, the options) of every option and value."""
    usual = {
        name: [str(places / value)] if name in ("teacher", "codec") else value.split()
        for name, value in verb.options.items()
    }
    first = places / verb.first if verb.first else None
    for name, option in options_of(verb.kind).items():
        hint = option.type
        if (only and name not in only) or hint is bool or is_dataclass(hint):
            continue
        flag = name.replace("_", "-")
        rest = [w for k, v in usual.items() if k != flag for w in (f"--{k}", *v)]
        for value in values:
            for words in asked(name, hint, value):
                yield f"--{flag} {' '.join(words)!r}", first, [*rest, f"--{flag}", *words]
    for value in VALUES if first and not only else ():
        yield f"{value!r}", value, [w for k, v in usual.items() for w in (f"--{k}", *v)]


def unwell(folder):
    """What is not right in what a command wrote."""
    for path in folder.rglob("*.safetensors"):
        for name, tensor in load_file(path).items():
            if tensor.is_floating_point() and not tensor.isfinite().all():
                yield f"{path.name}: {name} is not finite"
    for path in folder.rglob("*.npz"):
        with np.load(path) as arrays:
            for name, array in arrays.items():
                if array.dtype.kind == "f" and not np.isfinite(array).all():
                    yield f"{path.name}: {name} is not finite"
    for path in folder.rglob("*.json"):
        problems = list[str]()
        json.loads(path.read_text(), parse_constant=problems.append)
        yield from (f"{path.name} says {word}" for word in problems)


def verdict(words, capsys):
    """What a command did that it must not, or nothing."""

    def end(*_):
        raise Endless

    capsys.readouterr()
    signal.signal(signal.SIGALRM, end)
    signal.alarm(LIMIT)
    try:
        status = main(words)
    except SystemExit as left:
        status = left.code
    except Began:
        return None
    except (Exception, Endless) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
    errors = capsys.readouterr().err
    if status == 2:
        one = errors.startswith("halfstep: ") and errors.count("\n") == 1
        made = [path for path in Path().rglob("stages") if path.is_dir()]
        return None if one and not made else f"said {errors!r}, made {made}"
    return ", ".join(unwell(Path())) or None if status == 0 else f"status {status}: {errors!r}"


def fuzzed(verb, places, tmp_path, monkeypatch, capsys, **chosen):
    """Everything that went wrong."""
    wrong = list[str]()
    for case, first, words in cases(verb, places, **chosen):
        here, run = tmp_path / "here", tmp_path / "run"
        here.mkdir()
        monkeypatch.chdir(here)
        if verb.copied and isinstance(first, Path):
            first = shutil.copytree(first, run)
        before = [] if first is None else [str(first)]
        if problem := verdict([*verb.words.split(), *before, *words], capsys):
            wrong.append(f"{verb.words} {case}: {problem[:400]}")
        monkeypatch.chdir(tmp_path)
        shutil.rmtree(here)
        shutil.rmtree(run, ignore_errors=True)
    return wrong


@pytest.fixture(autouse=True)
def brief(monkeypatch, tmp_path_factory):
    """No demo is run, nothing is kept outside, and a plan's gate sees little."""
    monkeypatch.setenv("HALFSTEP_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))

    def begin(*_, **__):
        raise Began

    monkeypatch.setattr("halfstep.workflows.demo.load", begin)


@pytest.mark.parametrize("words", MAIN)
def test_main_options(words, places, tmp_path, monkeypatch, capsys):
    (verb,) = [verb for verb in VERBS if verb.words == words]
    few = {"only": MAIN[words], "values": ("nan", "inf", "-1", "1e400")}
    assert fuzzed(verb, places, tmp_path, monkeypatch, capsys, **few) == []


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.words.replace(" ", "-"))
def test_every_option(verb, places, tmp_path, monkeypatch, capsys):
    assert fuzzed(verb, places, tmp_path, monkeypatch, capsys) == []


def test_every_verb_is_here():
    # play serves until Ctrl-C
    assert {verb.words for verb in VERBS} == set(COMMANDS) - {"play"}
