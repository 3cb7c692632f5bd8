"""The command line: what a user types, and what comes back."""

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

import halfstep
from halfstep.cli import main, VERBS
from halfstep.config.fields import all_options, options_of
from halfstep.diffusion.denoiser import Denoiser
from halfstep.diffusion.prediction import V
from halfstep.diffusion.schedules import Cosine
from halfstep.evaluation.features.registry import load_classifier
from halfstep.methods import METHODS
from halfstep.models import build
from halfstep.pipeline import Pipeline
from tests.cli.commands import COMMANDS
from tests.cli.help_pages import KINDS

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
    """Half a second of processor time at most; nothing heavy is imported."""
    code = (
        "import sys, time\nfrom halfstep.cli import main\n"
        f"main({words})\n"
        "heavy = {'torch', 'numpy', 'pydantic', 'rich', 'diffusers', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "print(time.process_time(), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert float(done.stderr.split()[-1]) < 0.5


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


# Every option, with its help, and not too many of them.


@pytest.mark.parametrize("command", COMMANDS)
def test_the_budget_of_options(command):
    """Every option is a question to the user: at most 60 a verb, presets, files and watching apart."""
    assert len(options_of(KINDS[command]).keys() - {"log", "samples_every"}) <= 60


def test_no_option_is_there_twice():
    for command, kind in KINDS.items():
        names = [one.name for one in all_options(kind)]
        assert len(names) == len(set(names)), command


# What cannot be is one line, and status 2.


@pytest.mark.parametrize(
    "words, message",
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
def test_what_cannot_be_is_one_line_and_status_2(words, message, cli, tmp_path):
    status, _, err = cli(*words.split())
    assert status == 2
    assert err.startswith("halfstep: ") and err.count("\n") == 1 and err.endswith("\n"), err
    assert message.lower() in err.lower(), err
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
    before = (students / "config.toml").read_text()
    status, _, err = cli(
        "distill", "progressive", "--config", students / "config.toml", "--seed", "3"
    )
    assert status == 2 and "seed = 0, now it is 3" in err
    assert (students / "config.toml").read_text() == before


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
    options = TINY if verb.startswith("train") else ["--data", "two-moons", "--teacher", moons]
    halving = ["--start", 8, "--stop", 2] if verb.endswith("progressive") else []
    before = {path for path in moons.rglob("*")}
    status, out, err = cli(*verb.split(), *options, *halving, "--out", "x", "--dry-run")
    assert status == 0 and not err
    assert not list(tmp_path.iterdir()) and {path for path in moons.rglob("*")} == before
    assert re.search(r"time +about .* on cpu", out) and re.search(
        r"memory +[\d.]+ [kM]B at the peak", out
    )
    if verb.endswith("progressive"):
        # 10,000 points: 200 passes are 15,625 updates of 128, 16,000 in two digits.
        assert re.search(r"0004-steps +1,000 +640,000 ", out)
        assert re.search(r"0002-steps +2,000 +1,280,000 ", out)


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
        words = [
            "distill",
            "progressive",
            "--teacher",
            "t",
            "--data",
            "two-moons",
            "--tolerance",
            "0",
        ]
        words += ["--reparameterise-updates", "0", "--out", "d"]
        refused = cli(*words)
    status, _, err = refused
    assert status == 2 and ("drop_labels needs" in err or "reparameterise" in err)
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
    assert "--size 8 --flip --out t-student" in out
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
    from halfstep.cli import _set_threads

    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    monkeypatch.setenv("OMP_NUM_THREADS", "x")
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setenv("MKL_CBWR", "x")
    monkeypatch.delenv("MKL_CBWR")
    _set_threads(at_most=None)
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE" and os.environ["MKL_CBWR"] == "AUTO,STRICT"
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    _set_threads(at_most=None)
    assert os.environ["MKL_CBWR"] == "COMPATIBLE"
    assert 1 <= int(os.environ["OMP_NUM_THREADS"]) <= (os.cpu_count() or 1)


@pytest.mark.parametrize(("by_hand", "threads"), [(None, "1"), ("7", "7")])
def test_the_demo_takes_one_thread_unless_told_otherwise(monkeypatch, by_hand, threads):
    from halfstep.cli import _set_threads

    monkeypatch.setenv("OMP_NUM_THREADS", by_hand or "x")
    if by_hand is None:
        monkeypatch.delenv("OMP_NUM_THREADS")
    _set_threads(at_most=1)
    assert os.environ["OMP_NUM_THREADS"] == threads
