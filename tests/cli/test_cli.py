"""The command line: what a user types, and what comes back."""

import io
import json
import os
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import nn

import halfstep
from halfstep.cli import main, VERBS
from halfstep.cli.commands.distill import Distill
from halfstep.cli.commands.evaluate import Evaluate
from halfstep.cli.console.progress import Bars, counting, figure, say, span, terminal
from halfstep.cli.parse import parse
from halfstep.config.fields import all_options, flat, options_of
from halfstep.config.preset_files import preset_names
from halfstep.config.toml import from_file
from halfstep.diffusion.denoiser import Denoiser
from halfstep.diffusion.prediction import V
from halfstep.diffusion.schedules import Cosine
from halfstep.errors import CheckpointError, ConfigError, DataError
from halfstep.evaluation.features.registry import load_classifier
from halfstep.methods import DenoiserOnly, METHODS, Progressive
from halfstep.methods.base import Stage, updates_after
from halfstep.models import build
from halfstep.pipeline import Pipeline
from halfstep.training.run_config import read_config, write_config
from halfstep.workflows.options import DataOptions
from halfstep.workflows.sample import SampleConfig
from halfstep.workflows.train_denoiser import TrainDenoiserConfig
from tests.support.denoisers import wobbly_teacher
from tests.support.help_pages import KINDS

COMMANDS = [
    f"{verb} {kind}".strip() for verb, (_, kinds) in VERBS.items() for kind in kinds or [""]
]
TINY = ["--net", "mlp", "--net-config", "width", "16", "depth", "1", "--data", "two-moons"]


@pytest.fixture(scope="module")
def moons(tmp_path_factory):
    """A run of a tiny teacher of two moons."""
    out = tmp_path_factory.mktemp("moons") / "teacher"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("OMP_WAIT_POLICY", "PASSIVE")
        assert main(["train", "denoiser", *TINY, "--out", str(out), "--updates", "30"]) == 0
    return out


@pytest.fixture(scope="module")
def students(moons):
    """The same distilled from 8 steps to 2."""
    out = moons.parent / "students"
    words = ["--teacher", str(moons), "--data", "two-moons", "--out", str(out)]
    words += ["--start", "8", "--stop", "2", "--updates", "5", "--tolerance", "0"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("OMP_WAIT_POLICY", "PASSIVE")
        assert main(["distill", "progressive", *words]) == 0
    return out


# At once, and without torch.


@pytest.mark.parametrize(
    "words", [[], ["--help"], ["--version"], ["train"], ["distill", "--help"], ["distil"]]
)
def test_help_comes_at_once(words):
    """Under half a second of wall time, the best of three; nothing heavy is imported."""
    code = (
        "import sys\nfrom halfstep.cli import main\n"
        f"main({words})\n"
        "heavy = {'torch', 'numpy', 'pydantic', 'rich', 'diffusers', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    took = []
    for _ in range(3):
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
        )
        took.append(time.perf_counter() - began)
        assert done.returncode == 0, done.stderr
    assert min(took) < 0.5


def test_the_module_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "halfstep", "--version"], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == f"halfstep {halfstep.__version__}\n" and done.returncode == 0


def test_the_top_lists_every_verb(cli):
    for words in ([], ["--help"], ["-h"], ["help"]):
        status, out, err = cli(*words)
        assert status == 0 and not err
        assert all(command in out for command in COMMANDS)


def test_the_verbs_are_the_methods():
    assert VERBS["distill"][1].keys() == METHODS.keys() | {"knowledge"}
    assert set(COMMANDS) == set(KINDS)


# What the terminal shows.


def shown(width, terminal=True):
    """A console that writes into a string."""
    return Console(file=io.StringIO(), width=width, force_terminal=terminal, highlight=False)


def played(console, updates, *, first=0, every=50, name="0008-steps", **more):
    """A stage of so many updates, reported every few of them."""
    stage = Stage(name, nn.Identity(), None, updates)
    with Bars(console, **more) as bars:
        bars.begin(stage, first)
        for update in range(first + 1, updates + 1):
            bars.step(update, 3e-4)
            if update % every == 0 or update == updates:
                bars.measure(0.0123)
        bars.end(stage)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue())


@pytest.mark.parametrize(
    "updates, first, every",
    [(1, 0, 50), (19, 0, 1), (20, 0, 1), (21, 0, 1), (999, 0, 50), (20_000, 0, 50), (999, 500, 7)],
)
def test_where_nobody_looks_there_are_at_most_20_lines_a_stage(updates, first, every, monkeypatch):
    monkeypatch.setattr(time, "monotonic", lambda: 7.0)  # a machine that is busy takes its time
    said = played(shown(80, False), updates, first=first, every=every)
    lines = said.splitlines()
    assert 1 <= len(lines) <= 21
    assert f"{updates:,}/{updates:,}  loss 0.0123  lr 3.0e-04" in lines[-1]
    assert "in 0 s" in lines[-1] and lines[0].startswith("0008-steps")
    assert len(set(lines)) == len(lines)


@pytest.mark.parametrize("width", [80, 92, 100, 112, 130])
def test_a_bar_fits_on_its_line(width):
    said = played(shown(width), 3, every=1, updates_after=lambda stage: 10**9)
    for line in re.split(r"[\r\n]+", said):
        assert len(line.rstrip()) <= width
    last = said.rstrip().splitlines()[-1]
    assert "0008-steps ━" in last and "3/3" in last and "loss 0.0123" in last and "in 0 s" in last
    assert ("/s" in last) == (width >= 92)


@pytest.mark.parametrize("width", [80, 112])
def test_a_bar_of_large_numbers_fits_too(width):
    """Hours left, and in all where there is room, in a hundred thousand updates."""
    console = shown(width)
    stage = Stage("0128-steps", nn.Identity(), None, 100_000)
    with Bars(console, updates_after=lambda stage: 300_000) as bars:
        bars.begin(stage, 0)
        bars.step(50_000, 3e-4)
        bars.measure(1.2e-7)
        bars._took = 50_000.0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue())
    last = re.split(r"[\r\n]+", text.rstrip())[-1].rstrip()
    assert len(last) <= width
    assert "50,000/100,000 loss 1.2e-07  lr 3.0e-04" in last and "13 h 53 min left" in last
    assert ("97 h 13 min in all" in last) == (width >= 112)


def test_the_terminal_is_given_back_after_a_failure():
    console = shown(80)
    with pytest.raises(RuntimeError), Bars(console) as bars:
        bars.begin(Stage("teacher", nn.Identity(), None, 10), 0)
        raise RuntimeError
    assert console.file.getvalue().rindex("\x1b[?25h") > console.file.getvalue().rindex("\x1b[?25l")


@pytest.mark.parametrize(
    "updates, after",
    [((1, 10, 100), {4: 110, 2: 100, 1: 0}), ((3,), {4: 12, 2: 6, 1: 0})],  # the last two doubled
)
def test_what_is_ahead_is_the_sum_of_later_halvings(updates, after):
    method = Progressive(start=8, stop=1, updates=updates)
    assert method.summary() == "8 -> 4 -> 2 -> 1 steps"
    plan = method.plan(DenoiserOnly(wobbly_teacher(Cosine(), V())))
    for steps, count in after.items():
        assert updates_after(plan, f"{steps:04d}-steps") == count
    assert sum(stage.updates for stage in plan) == method.updates_for(0, 4) + after[4]


def test_opened_is_called_once_before_the_first_update():
    called = []
    bars = Bars(shown(80, False), opened=lambda: called.append(1))
    for name in ("a", "b"):
        stage = Stage(name, nn.Identity(), None, 1)
        assert bool(called) == (name == "b")
        bars.begin(stage, 0)
        bars.end(stage)
    assert called == [1]


def test_what_is_said_is_printed_as_it_is():
    console = shown(20, False)
    say(console, "at", "runs/[bold]x[/bold]/a long folder name")
    assert console.file.getvalue() == "at        runs/[bold]x[/bold]/a long folder name\n"


@pytest.mark.parametrize(
    "seconds, said",
    [(0, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (75, "1 min 15 s"), (3599.6, "1 h 00 min"),
     (3725, "1 h 02 min"), (360_000, "100 h 00 min")],
)  # fmt: skip
def test_spans(seconds, said):
    assert span(seconds) == said


@pytest.mark.parametrize(
    "loss, said",
    [
        (None, "------"),
        (0.01234, "0.0123"),
        (12.5, "12.5000"),
        (9.3e-5, "9.3e-05"),
        (float("nan"), "nan"),
    ],
)
def test_losses(loss, said):
    assert figure(loss) == said


@pytest.mark.parametrize("terminal", [True, False])
def test_counting_counts(terminal):
    console = shown(80, terminal)
    with counting(console, "16 samples in 4 steps") as progress:
        for _ in range(2):
            progress.expect(2)  # the total grows
            progress.advance(2)
        progress.note("a sentence")
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue())
    assert "16 samples in 4 steps" in text
    assert ("4/4 in 0 s" in text) == terminal
    assert re.search(r"note +a sentence\n", text)


def test_few_steps_are_not_drawn():
    for steps in (5, 6):
        console = shown(80, True)
        with counting(console, "reading", few=5) as progress:
            for _ in range(steps):
                progress.expect(1)
                progress.advance()
        assert ("6/6" in console.file.getvalue()) == (steps == 6)


# Every option, with its help, and not too many of them.


@pytest.mark.parametrize("command", COMMANDS)
def test_the_budget_of_options(command):
    """Every option is a question to the user: below 60 a verb, presets and files apart."""
    assert len(options_of(KINDS[command])) <= 60


def test_no_option_is_there_twice():
    for command, kind in KINDS.items():
        names = [one.name for one in all_options(kind)]
        assert len(names) == len(set(names)), command


# What cannot be is one line, and status 2.


@pytest.mark.parametrize(
    "words, said",
    [
        ("distil", "no verb 'distil': perhaps you meant 'distill'"),
        ("train denoizer", "perhaps you meant 'denoiser'; choose from classifier, codec, denoiser"),
        ("distill progressiv --teacher x", "perhaps you meant 'progressive'"),
        ("train denoiser", "needs --out and --data; see halfstep train denoiser --help"),
        ("distill progressive --out x --data y --strat 3", "no option --strat: perhaps you meant --start"),
        ("distill progressive --no-flop --out x", "no option --no-flop: perhaps you meant --flip"),
        ("distill progressive --data y", "needs --out;"),
        ("distill progressive --out x --teacher y --data z --start", "--start needs a value after it"),
        ("train denoiser --out x --data y --batch-size 1.5", "--batch-size takes a whole number, got '1.5'"),
        ("train denoiser --out x --data y --learning-rate=a", "--learning-rate takes a number, got 'a'"),
        ("train denoiser --out x --data y --net-config width", "--net-config takes pairs of names"),
        ("train denoiser --out x --data y --predicts w", "there is no --predicts 'w'"),
        ("train denoiser --out x --data digitz", "perhaps you meant 'digits'"),
        ("train denoiser --out x --data digits --net uvitt", "perhaps you meant 'uvit'"),
        ("train denoiser --out x --data two-moons", "'uvit' is for images"),
        ("train denoiser --out x --data digits --net mlp", "'mlp' is for points"),
        ("train denoiser --out x --data digits --net-config depht 3", "perhaps you meant 'depth'"),
        ("train denoiser --out x --data digits --net-config patch_size 4 depth 3", "depth"),
        ("train denoiser --out x --data two-moons --net mlp --net-config width wide", "width = wide"),
        ("train denoiser --out x --data two-moons --net mlp --schedule-config logsnr_mni 3", "'logsnr_min'"),
        ("train denoiser --out x --data two-moons --net mlp --schedule-config logsnr_min a", "= 'a' cannot"),
        ("train denoiser --out x --data digits --batch-size 0", "batch_size must be at least 1, got 0"),
        ("train denoiser --out x --data digits --weighting snrr", "perhaps you meant 'snr'"),
        ("train denoiser --out x --data two-moons --net mlp --device cudda", "device 'cudda' cannot be"),
        ("train denoiser --preset digitz", "no preset 'digitz': perhaps you meant 'digits'"),
        ("train denoiser --preset", "--preset needs a name after it"),
        ("train denoiser --preset=", "--preset needs a name after it"),
        ("train denoiser --config", "--config needs a file after it"),
        ("train denoiser --config nowhere.toml", "'nowhere.toml' cannot be read (No such file"),
        ("train denoiser --preset digits-progressive --out x", "option in 'digits-progressive.toml' called"),
        ("train classifier --out x --data two-moons", "a classifier needs labelled images"),
        ("distill progressive --teacher nowhere --data digits --out x", "'nowhere' holds neither"),
        ("distill progressive --teacher x --data y --out z --start 10 --stop 3", "start=6"),
        ("sample nowhere --out x", "'nowhere' holds neither a pipeline nor a run"),
        ("sample --out x", "needs the folder of a pipeline, or --model and --weights"),
        ("sample a b --out x", "does not take 'b'"),
        ("sample a --out x --n 0", "n must be at least 1"),
        ("train denoiser --out x --data digits --net nowhere:make", "no module 'nowhere'"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line_and_status_2(words, said, cli, tmp_path):
    status, _, err = cli(*words.split())
    assert status == 2
    assert err.startswith("halfstep: ") and err.count("\n") == 1 and err.endswith("\n"), err
    assert said.lower() in err.lower(), err
    assert "Traceback" not in err and "╭" not in err
    assert not list(tmp_path.iterdir())


def test_a_bug_keeps_its_traceback(cli, tmp_path):
    (tmp_path / "own_buggy.py").write_text("def make():\n    return 1 / 0\n")
    with pytest.raises(ZeroDivisionError):
        cli("train", "denoiser", "--data", "two-moons", "--out", "x", "--net", "own_buggy:make")


def test_whoever_stops_reading_gets_no_traceback():
    code = "from halfstep.cli import main; import sys; sys.exit(main(['sample', '--help']))"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()


# TOML files.

CODE = "import pathlib\npathlib.Path('RAN').write_text('')\n\n\ndef made(**any):\n    raise SystemExit(9)\n"
TYPED = {
    "train denoiser --data two-moons": [
        'net = "named_code:made"', 'net_config = { a = "named_code:made" }', 'net = "classifier:made"',
        'net_config = { "named_code:made" = "a" }',
    ],
    "train classifier --data digits": ['net = "named_code:made"'],
    "distill progressive --data two-moons --teacher t": [
        'net = "named_code:made"', 'features = "named_code:made"', "features = 'classifiers:made'",
    ],
    "distill guided --data two-moons --teacher t": [
        'student_net = "named_code:made"', 'features = "named_code:made"',
        'student = { build = "named_code:made" }',
    ],
    "distill knowledge --data digits --teacher t": [
        'recipe = "named_code:made"', 'teacher_net = "named_code:made"', 'net = "named_code:made"',
    ],
    "sample t": ['net = "named_code:made"', 'sampler = "named_code:made"'],
    "evaluate t": ['features = "named_code:made"', 'net = "named_code:made"', 'baselines = ["a:b"]'],
    "export t": ['net = "named_code:made"'],
}  # fmt: skip


@pytest.mark.parametrize("words, line", [(words, line) for words in TYPED for line in TYPED[words]])
def test_a_file_never_names_code_that_is_run(words, line, cli, tmp_path):
    (tmp_path / "named_code.py").write_text(CODE)
    (tmp_path / "shared.toml").write_text(f"{line}\n")
    for more in ((), ("--dry-run",)) if words.split()[0] in ("train", "distill") else ((),):
        out = () if words.startswith("evaluate") else ("--out", "x")
        status, _, err = cli(*words.split(), "--config", "shared.toml", *out, *more)
        option = line.partition(" ")[0].replace("_", "-")
        assert status == 2 and f"if you trust it, type --{option} " in err, err
        assert err.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"named_code.py", "shared.toml"}


SMUGGLED = {
    "train denoiser --data two-moons": [
        "schedule_config = { kind = 'linear', '--net=named_code:made' = '--no-flip' }",
        "schedule_config = { kind = '--net=named_code:made' }",
        "net_config = { '--net' = 'named_code:made' }",
        "net_config = { a = '-h' }",
    ],
    "distill knowledge --data digits": ["teacher = ['t', '--recipe=named_code:made']"],
    "sample t": [
        "prompt = ['a', '--net=named_code:made']",
        "prompt = ['--net', 'named_code:made']",
    ],
    "evaluate t": ["baselines = ['ddim', '--net=named_code:made']"],
}


@pytest.mark.parametrize("words, line", [(w, line) for w in SMUGGLED for line in SMUGGLED[w]])
def test_a_file_s_value_is_never_an_option(words, line, cli, tmp_path):
    (tmp_path / "named_code.py").write_text(CODE)
    (tmp_path / "shared.toml").write_text(f"{line}\n")
    status, _, err = cli(*words.split(), "--config", "shared.toml", "--out", "x")
    assert status == 2 and err.count("\n") == 1 and "Traceback" not in err, err
    assert {path.name for path in tmp_path.iterdir()} == {"named_code.py", "shared.toml"}


def test_a_file_s_numbers_below_0_are_values(tmp_path):
    (tmp_path / "a.toml").write_text(
        "schedule_config = { logsnr_min = -7.5, logsnr_max = '-1e-3' }"
    )
    words = ["--data", "two-moons", "--out", "x", "--config", str(tmp_path / "a.toml")]
    found = parse(TrainDenoiserConfig, words, prog="halfstep train denoiser")
    assert found.network.schedule_config == {"logsnr_min": "-7.5", "logsnr_max": "-1e-3"}


def test_what_is_typed_is_run_and_wins_over_the_file(tmp_path, monkeypatch):
    (tmp_path / "a.toml").write_text(
        'net = "named_code:made"\nsampler = "diffusers:DDIMScheduler"\n'
    )
    words = ["p", "--config", str(tmp_path / "a.toml"), "--out", "x"]
    found = parse(SampleConfig, [*words, "--net", "my_code:made"], prog="halfstep sample")
    assert (found.net, found.sampler) == ("my_code:made", "diffusers:DDIMScheduler")
    with pytest.raises(ConfigError, match="type --net named_code:made"):
        parse(SampleConfig, words, prog="halfstep sample")


@pytest.mark.parametrize(
    "line",
    ['features = "classifier:a/b"', 'features = "inception:file.pth"', 'data = "cifar10:folder"',
     'teacher = "a:b"', 'full_sampler = "diffusers:PNDMScheduler"', 'held_out = "fashion-mnist:x"',
     'baselines = ["ddim", "diffusers:UniPCMultistepScheduler"]', 'device = "cuda:1"'],
)  # fmt: skip
def test_places_and_schedulers_are_no_code(line, tmp_path):
    (tmp_path / "a.toml").write_text(line)
    words = parse(Evaluate, ["run", "--config", str(tmp_path / "a.toml")], prog="halfstep evaluate")
    name, _, value = line.partition(" = ")
    found = {**vars(words), **vars(words.evaluation)}[name]
    assert (list(found) if isinstance(found, tuple) else str(found)) == json.loads(value)


@pytest.mark.parametrize(
    "change", [lambda t: t[:20], lambda t: t.replace("7", "8"), lambda t: "a = ["]
)
def test_a_run_s_own_config_is_as_it_was_written(change, tmp_path):
    write_config(tmp_path, flat(DataOptions(data="digits", size=7)))
    assert read_config(tmp_path)["size"] == 7
    path = tmp_path / "config.toml"
    path.write_text(change(path.read_text()))
    with pytest.raises(CheckpointError, match=r"config\.toml"):
        read_config(tmp_path)


def test_a_run_s_config_has_no_other_types(tmp_path):
    write_config(tmp_path, {"data": 3})
    with pytest.raises(CheckpointError, match="data must be text"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    "text", ["a = nan", "batch_size = " + "9" * 9999, "a = " + "[" * 10**5, "\x80"]
)
def test_a_config_that_is_damaged_is_one_sentence(text, cli, tmp_path):
    (tmp_path / "a.toml").write_bytes(text.encode("latin-1"))
    status, _, err = cli(
        "train", "denoiser", "--config", "a.toml", "--data", "digits", "--out", "x"
    )
    assert status == 2 and "a.toml" in err and err.count("\n") == 1, err


def test_names_are_text_in_the_terminal(capsys):
    """Neither rich's marks nor what a terminal obeys."""
    console = terminal()
    table = Table("a [bold]name[/bold]")
    table.add_row("[/red] :smile:")
    console.print(table)
    say(console, "a", "[link=x]:smile:[/link]")
    out = capsys.readouterr().out
    for text in ("a [bold]name[/bold]", "[/red] :smile:", "[link=x]:smile:[/link]"):
        assert text in out
    say(console, "a", "b\x1b[2J\nc")
    assert capsys.readouterr().out.endswith("b\\x1b[2J\\nc\n")
    assert str(DataError("no 'a\nb\x1b[2J\udcff'")) == r"no 'a\nb\x1b[2J\udcff'"


def asked(kind, *words):
    return parse(kind, ["--out", "run", "--data", "digits", *map(str, words)], prog="halfstep")


def test_the_line_wins_over_the_file_and_the_file_over_the_defaults(tmp_path):
    file = tmp_path / "o.toml"
    file.write_text("batch_size = 7\nlearning_rate = 0.5\nflip = true\nbetas = [0.1, 0.2]\n")
    got = asked(TrainDenoiserConfig, "--config", file, "--learning-rate", "0.25", "--no-flip")
    assert (
        got.training.batch_size == 7 and got.training.learning_rate == 0.25 and not got.dataset.flip
    )
    assert got.training.betas == (0.1, 0.2) and got.training.max_grad_norm == 1.0
    assert asked(TrainDenoiserConfig, f"--config={file}").dataset.flip


def test_a_file_wins_over_a_preset(tmp_path):
    (tmp_path / "o.toml").write_text("learning_rate = 0.125")
    for words in (
        ["--preset", "digits", "--config", tmp_path / "o.toml"],
        ["--config", tmp_path / "o.toml", "--preset=digits"],
    ):
        got = asked(TrainDenoiserConfig, *words)
        assert (
            got.training.learning_rate == 0.125
            and got.dataset.data == "digits"
            and got.network.labels
        )


def test_every_type_of_option_comes_from_a_file(tmp_path):
    file = tmp_path / "o.toml"
    file.write_text(
        'net = "mlp"\nnet-config = { width = 32, bias = true, name = "a b", list = [1, 2] }\n'
        'time_offset = -1e-5\nlabels = true\npredicts = "eps"\nsize = 28\nout = "a folder"\n'
        "sampling_clip = 2\nupdates = 3\n"
    )
    got = parse(TrainDenoiserConfig, ["--data", "x", "--config", str(file)], prog="halfstep")
    assert got.network.net_config == {
        "width": "32", "bias": "true", "name": "a b", "list": "[1, 2]",
    }  # fmt: skip
    assert got.network.time_offset == -1e-5 and got.network.labels and got.dataset.size == 28
    assert got.network.predicts == "eps" and got.folder.out == Path("a folder")
    assert got.network.sampling_clip == 2.0 and got.method.updates == 3
    file.write_text("updates = [3, 4, 5]\ntimes = []\nstart = 8")
    got = asked(Distill[Progressive], "--teacher", "t", "--config", file)
    assert got.method.updates == (3, 4, 5) and got.method.times == ()


@pytest.mark.parametrize(
    "text, said",
    [
        ('batch_size = "128"', 'batch_size = "128", and batch_size is a whole number'),
        ("batch_size = 12.5", "batch_size is a whole number"),
        ("batch_size = true", "batch_size is a whole number"),
        ('learning_rate = "fast"', "learning_rate is a number"),
        ("flip = 1", "flip is true or false"),
        ('flip = "true"', "flip is true or false"),
        ("data = 3", "data is text"),
        ("out = ['a']", "out is text"),
        ("betas = [0.9]", "betas is a list of 2, a number each"),
        ("betas = 0.9", "betas is a list of 2, a number each"),
        ("updates = 100", "updates is a list, a whole number each"),
        ("updates = [100, 'x']", "updates is a list, a whole number each"),
        ('grid = "unifrm"', "grid is one of uniform, trailing, logsnr, karras"),
        ("size = 'big'", "size is a whole number"),
        ("bacth_size = 3", "called 'bacth_size': perhaps you meant 'batch_size'"),
        ("[training]\nbatch = 3", "no option in 'o.toml' called 'training'"),
        ("batch_size = ", "is not TOML"),
        ("batch_size = 3\nbatch_size = 4", "is not TOML"),
    ],
)
def test_a_file_is_checked(text, said, tmp_path):
    (tmp_path / "o.toml").write_text(text)
    with pytest.raises(ConfigError, match=re.escape(said)):
        from_file(Distill[Progressive], tmp_path / "o.toml")


def test_a_table_is_a_table(tmp_path):
    (tmp_path / "o.toml").write_text("net_config = [1]")
    with pytest.raises(ConfigError, match="net_config is a table of names and values"):
        from_file(TrainDenoiserConfig, tmp_path / "o.toml")


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--flip", "--size", "28", "--labels", "--net", "a.b:make"],
        ["--net-config", "width", "32", "name", 'a "quoted" näme 🙂\n', "--time-offset=-1e-07"],
        [
            "--betas",
            "0.5",
            "0.75",
            "--learning-rate",
            "1e-30",
            "--learning-rate-schedule",
            "constant",
        ],
    ],
)
def test_saved_options_come_back(words, tmp_path):
    options = asked(TrainDenoiserConfig, *words)
    write_config(tmp_path, flat(options))
    code = ["--net", "a.b:make"] if "a.b:make" in words else []  # which is typed again
    words = ["--config", str(tmp_path / "config.toml"), *code]
    assert parse(TrainDenoiserConfig, words, prog="halfstep") == options
    kept = tomllib.loads((tmp_path / "config.toml").read_text(encoding="utf-8"))
    assert kept.keys() == {name for name, value in flat(options).items() if value is not None}


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_parses_for_its_own_command(name):
    """A preset's head has the command that made it: a verb of ours with this preset."""
    text = (Path(halfstep.__file__).parent / "presets" / f"{name}.toml").read_text()
    command = re.search(r"^# command   halfstep (.*?) --preset (\S+) (.*)$", text, re.MULTILINE)
    assert command and command[2] == name
    words = ["--preset", name, *command[3].split()]
    options = flat(parse(KINDS[command[1]], words, prog="halfstep"))
    for key, value in tomllib.loads(text).items():
        got = options[key]
        if isinstance(value, dict):
            value = {k: v if isinstance(v, str) else json.dumps(v) for k, v in value.items()}
        assert (list(got) if isinstance(value, list) else got) == value, key
    assert name in preset_names(f"halfstep {command[1]}")


# From end to end, on points.


def test_a_run_says_what_it_did_and_what_to_type_next(moons, cli):
    words = ["train", "denoiser", *TINY, "--out", moons, "--updates", 30]
    before = (moons / "stages" / "teacher" / "pipeline.safetensors").read_bytes()
    began = time.perf_counter()
    status, out, err = cli(*words)
    assert status == 0 and not err and time.perf_counter() - began < 5
    net = Pipeline.load(moons / "stages" / "teacher").denoiser
    count = sum(parameter.numel() for parameter in net.parameters())
    assert f"mlp, {count:,} parameters, predicts v, schedule cosine" in out
    assert "two-moons, 10,000 samples of shape [2], 2 classes" in out
    assert "finished before" in out and f"{moons}/stages/teacher" in out
    assert (moons / "stages" / "teacher" / "pipeline.safetensors").read_bytes() == before
    following = [line for line in out.splitlines() if line.startswith("next")]
    assert f"--teacher {moons} --data two-moons" in following[0]


@pytest.mark.parametrize("run", ["moons", "students"])
def test_its_own_config_repeats_a_run(run, cli, request):
    folder = request.getfixturevalue(run)
    verb = ["train", "denoiser"] if run == "moons" else ["distill", "progressive"]
    status, out, err = cli(*verb, "--config", folder / "config.toml")
    assert status == 0 and "finished before" in out, err


def test_the_same_folder_with_other_options_is_refused_and_untouched(students, cli):
    kept = (students / "config.toml").read_text()
    status, _, err = cli(
        "distill", "progressive", "--config", students / "config.toml", "--seed", "3"
    )
    assert status == 2 and "seed = 0, now it is 3" in err
    assert (students / "config.toml").read_text() == kept


def test_a_distillation_says_where_its_students_are(students, cli):
    status, out, _ = cli("distill", "progressive", "--config", students / "config.toml")
    assert status == 0
    assert re.search(r"^plan +8 -> 4 -> 2 steps$", out, re.MULTILINE)
    assert re.search(r"^updates +15 of 128 samples each", out, re.MULTILINE)  # the last doubled
    listed = re.findall(r"^student +(\S+)$", out, re.MULTILINE)
    assert [Path(folder).name for folder in listed] == ["0004-steps", "0002-steps"]
    for folder in listed:
        assert Pipeline.load(folder).sample(2).shape == (2, 2)
    command = re.search(r"^look +halfstep (.*)$", out, re.MULTILINE)[1]
    status, out, err = cli(*command.split())
    assert status == 0 and not err


def test_samples_of_a_student_are_those_of_its_pipeline(students, cli, tmp_path):
    status, out, _ = cli(
        "sample", students, "--steps", 4, "--n", 5, "--seed", 9, "--first", 2, "--out", "s", "--npz"
    )
    assert status == 0
    got = np.load(tmp_path / "s" / "samples.npz")["images"]
    want = Pipeline.load(students / "stages" / "0004-steps").sample(5, seed=9, first=2)
    assert np.array_equal(got, want.numpy())
    for path in ("s/grid.png", "s/samples.npz"):
        assert path in out and (tmp_path / path).exists()
    with Image.open(tmp_path / "s" / "grid.png") as picture:
        assert picture.width > 100


def test_a_run_samples_its_fewest_steps_by_default(students, cli, tmp_path):
    assert cli("sample", students, "--n", 3, "--out", "s", "--npz")[0] == 0
    got = np.load(tmp_path / "s" / "samples.npz")["images"]
    want = Pipeline.load(students / "stages" / "0002-steps").sample(3)
    assert np.array_equal(got, want.numpy())


def test_steps_that_no_student_takes_are_refused_with_those_they_take(students, cli):
    status, _, err = cli("sample", students, "--steps", 3, "--out", "s")
    assert status == 2 and "distilled for 3 steps: they take 2 or 4" in err
    status, _, err = cli("sample", students / "stages" / "0004-steps", "--steps", 2, "--out", "s")
    assert status == 2 and "it can take 4" in err


def test_a_teacher_takes_any_steps(moons, cli, tmp_path):
    assert cli("sample", moons, "--n", 3, "--steps", 5, "--out", "s", "--npz")[0] == 0
    got = np.load(tmp_path / "s" / "samples.npz")["images"]
    assert np.array_equal(got, Pipeline.load(moons / "stages/teacher").sample(3, steps=5).numpy())


def test_what_is_no_picture_is_written_as_numbers(cli, tmp_path):
    net = build("mlp", {"dim": 5, "width": 8, "depth": 1})
    Pipeline(Denoiser(net, Cosine(), V()), (5,)).save("five")
    status, _, err = cli("sample", "five", "--out", "s")
    assert (
        status == 2
        and "samples of shape [5] are no picture: give a folder as --out, and add --npz" in err
    )
    assert not (tmp_path / "s").exists()
    assert cli("sample", "five", "--out", "s", "--npz", "--n", 3)[0] == 0
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["samples.npz"]
    assert np.load(tmp_path / "s" / "samples.npz")["images"].shape == (3, 5)


@pytest.mark.parametrize(
    "verb", ["train denoiser", "distill progressive", "distill reparameterise"]
)
def test_a_rehearsal_prints_the_plan_and_writes_nothing(verb, moons, cli, tmp_path):
    """On labelled data and a network that takes no labels, as a run would do it."""
    own = TINY if verb.startswith("train") else ["--data", "two-moons", "--teacher", moons]
    halving = ["--start", 8, "--stop", 2] if verb.endswith("progressive") else []
    before = {path for path in moons.rglob("*")}
    status, out, err = cli(*verb.split(), *own, *halving, "--out", "x", "--dry-run")
    assert status == 0 and not err
    assert not list(tmp_path.iterdir()) and {path for path in moons.rglob("*")} == before
    assert re.search(r"time +about .* on cpu", out) and re.search(r"memory +0\.\d MiB", out)
    if verb.endswith("progressive"):
        assert re.search(r"0004-steps +50,000 +32,000,000 ", out)
        assert re.search(r"0002-steps +100,000 +64,000,000 ", out)


def test_a_run_can_be_extended_on_the_line(moons, cli):
    words = ["distill", "progressive", "--teacher", moons, "--data", "two-moons", "--out", "d"]
    words += ["--updates", 2, "--start", 8, "--tolerance", 0]
    assert cli(*words, "--stop", 4)[0] == 0
    status, out, _ = cli(*words, "--stop", 2, "--extend")
    assert status == 0 and "0002-steps" in out
    assert tomllib.loads(Path("d/config.toml").read_text())["stop"] == 2


def test_a_run_that_fails_keeps_what_was_asked(cli, tmp_path):
    status, _, err = cli(
        "train", "denoiser", *TINY, "--out", "x", "--updates", 20, "--learning-rate", "1e25",
        "--max-grad-norm", 0, "--log-every", 5,
    )  # fmt: skip
    assert status == 2 and "not finite" in err and err.count("\n") == 1, err
    assert tomllib.loads((tmp_path / "x" / "config.toml").read_text())["learning_rate"] == 1e25


def test_a_network_of_ones_own_from_the_current_folder(cli, tmp_path):
    (tmp_path / "own_net_of_the_cli.py").write_text(
        "from torch import nn\n\n\n"
        "class Mine(nn.Module):\n"
        "    def __init__(self, width=2):\n"
        "        super().__init__()\n"
        "        self.layer = nn.Linear(2, 2)\n\n"
        "    def forward(self, x, t, cond=None):\n"
        "        return self.layer(x)\n"
    )
    net = ["--net", "own_net_of_the_cli:Mine"]
    sys.path[:] = [folder for folder in sys.path if folder not in ("", str(tmp_path))]
    try:
        status, out, err = cli(
            "train", "denoiser", *net, "--net-config", "width", 3, "--data", "two-moons",
            "--updates", 3, "--out", "t",
        )  # fmt: skip
        assert status == 0, err
        assert "halfstep sample t --out t/samples --net own_net_of_the_cli:Mine" in out
        status, _, err = cli("sample", "t", "--out", "s")
        assert status == 2 and "--net own_net_of_the_cli:Mine" in err
        status, out, err = cli(
            "distill", "progressive", "--teacher", "t", *net, "--data", "two-moons",
            "--start", 4, "--stop", 2, "--updates", 2, "--tolerance", 0, "--out", "d",
        )  # fmt: skip
        assert status == 0, err
        command = re.search(r"^look +halfstep (.*)$", out, re.MULTILINE)[1]
        assert cli(*command.split())[0] == 0
    finally:
        sys.modules.pop("own_net_of_the_cli", None)


def test_only_the_first_process_speaks_and_writes(moons, cli, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    status, out, err = cli("sample", moons, "--n", 2, "--steps", 2, "--out", "s")
    assert (status, out, err) == (0, "", "")


@pytest.mark.parametrize("option", ["--drop-labels=0.1", "--predicts=eps"])
def test_what_a_method_refuses_leaves_no_folder(option, cli, tmp_path):
    words = ["train", "denoiser", *TINY, "--updates", 2, option, "--out", "t"]
    refused = cli(*words)
    if option.startswith("--predicts"):
        assert refused[0] == 0
        words = ["distill", "progressive", "--teacher", "t", "--data", "two-moons"]
        words += ["--tolerance", "0", "--out", "d"]
        refused = cli(*words)
    status, _, err = refused
    assert status == 2 and ("drop_labels needs" in err or "eps says nothing" in err)
    assert not (tmp_path / words[-1]).exists()


# From end to end, on images.


@pytest.fixture
def pictures(tmp_path):
    """Two classes of four pictures each."""
    numbers = np.random.default_rng(0)
    for name in ("cats", "dogs"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for k in range(4):
            pixels = numbers.integers(0, 256, (12, 10, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{k}.png")
    return tmp_path / "images"


def test_a_folder_of_pictures_from_teacher_to_samples(pictures, cli, tmp_path):
    small = ["img_size", "8", "patch_size", "4", "embed_dim", "16", "depth", "2", "num_heads", "2"]
    status, out, err = cli(
        "train", "denoiser", "--data", pictures, "--size", 8, "--flip", "--labels",
        "--drop-labels", 0.25, "--net-config", *small[2:], "--updates", 3, "--batch-size", 6,
        "--out", "t",
    )  # fmt: skip
    assert status == 0, err
    assert "8 samples of shape [3, 8, 8], 2 classes" in out
    assert "--size 8 --flip --out STUDENT" in out
    status, _, err = cli(
        "distill", "progressive", "--teacher", "t", "--data", pictures, "--size", 8,
        "--start", 4, "--stop", 2, "--updates", 2, "--batch-size", 6, "--tolerance", 0, "--out", "d",
    )  # fmt: skip
    assert status == 0, err
    status, out, err = cli(
        "sample",
        "d",
        "--n",
        5,
        "--first",
        3,
        "--labels",
        "1,2",
        "--guidance-scale",
        2,
        "--out",
        "s",
    )
    assert status == 0, err
    assert "s/000003.png to 000007.png" in out
    made = sorted(path.name for path in (tmp_path / "s").iterdir())
    assert made == [*(f"{k:06d}.png" for k in range(3, 8)), "grid.png"]
    with Image.open(tmp_path / "s" / "000003.png") as picture:
        assert picture.size == (8, 8) and picture.mode == "RGB"
    student = Pipeline.load(tmp_path / "d/stages/0002-steps")
    assert student.class_names == ("cats", "dogs") and student.null == 2 and student.clip == 1.0


def test_data_of_another_shape_is_refused_alike_in_run_and_rehearsal(moons, cli):
    words = ["distill", "progressive", "--teacher", moons, "--data", "digits", "--out", "x"]
    words += ["--tolerance", 0]
    for more in ([], ["--dry-run"]):
        status, _, err = cli(*words, *more)
        assert status == 2 and "shape [2] and the data has [1, 8, 8]" in err


def test_a_classifier_is_trained_and_scored(cli, tmp_path):
    status, out, err = cli(
        "train", "classifier", "--data", "digits", "--updates", 3, "--batch-size", 32, "--out", "c"
    )
    assert status == 0, err
    share = float(re.search(r"accuracy +([\d.]+)%", out)[1])
    net = load_classifier(tmp_path / "c/stages/classifier").eval()
    digits = halfstep.load_data("digits")
    batch = digits.batch(torch.arange(len(digits)))
    with torch.no_grad():
        right = (net(batch.x0).argmax(1) == batch.cond.label).double().mean()
    assert share == pytest.approx(100 * float(right), abs=0.051)


def test_threads_wait_quietly_unless_told_otherwise(monkeypatch):
    from halfstep.cli import _quiet_threads

    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    monkeypatch.setenv("OMP_NUM_THREADS", "x")
    monkeypatch.delenv("OMP_NUM_THREADS")
    _quiet_threads(at_most=None)
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"
    assert 1 <= int(os.environ["OMP_NUM_THREADS"]) <= (os.cpu_count() or 1)


@pytest.mark.parametrize(("by_hand", "threads"), [(None, "1"), ("7", "7")])
def test_the_demo_takes_one_thread_unless_told_otherwise(monkeypatch, by_hand, threads):
    from halfstep.cli import _quiet_threads

    monkeypatch.setenv("OMP_NUM_THREADS", by_hand or "x")
    if by_hand is None:
        monkeypatch.delenv("OMP_NUM_THREADS")
    _quiet_threads(at_most=1)
    assert os.environ["OMP_NUM_THREADS"] == threads
