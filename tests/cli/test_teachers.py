"""A published model as a teacher, latents that were held out, and rehearsals of what is large."""

import json
import re
import time
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from halfstep.cli import main
from halfstep.data import Dataset, load
from halfstep.hub.uvit import PUBLISHED
from halfstep.methods.stages import Objective, Stage
from halfstep.models.autoencoder.kl import KLCodec
from halfstep.pipeline import Pipeline
from halfstep.schema import plain
from halfstep.training import TrainingConfig
from halfstep.workflows.dry_run import LONG, PATIENCE, probed, seconds_per_update
from tests.support.evidence import read_back
from tests.support.networks import CODEC
from tests.support.runs import everything, refused

HUGE = "imagenet256_uvit_huge"
TINY = dict(img_size=4, embed_dim=16, depth=2, num_heads=2)
FEATURES = ["--features", "tests.cli.test_teachers:corners"]
QUICK = ["--updates", 2, "--batch-size", 4, "--device", "cpu"]
BRIEF = [*FEATURES, "--samples", 16, "--split-samples", 0, "--metrics", "frechet", "--full", 4]
BRIEF += ["--device", "cpu"]


def corners():
    return lambda x: torch.stack([x[:, 0, 0, 0], x[:, 1, -1, 0], x.mean((1, 2, 3))], 1).double()


def typed(words):
    return main([str(word) for word in words])


def photos(folder, seed, side=32):
    rng = np.random.default_rng(seed)
    for k in range(8):
        place = folder / ("cats" if k < 4 else "dogs") / f"{k}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(place)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Photos, others, a codec, latents of both: made once."""
    root = tmp_path_factory.mktemp("made")
    photos(root / "photos", 0)
    photos(root / "others", 1)
    torch.manual_seed(1)
    KLCodec.fresh(CODEC, scale=0.18215).save(root / "codec")
    for source, scale in (("photos", 0.18215), ("others", 0.18215), ("photos", 0.5)):
        name = f"l-{source}-{scale}"
        words = ["latents", "--data", root / source, "--codec", root / "codec", "--scale", scale]
        assert typed([*words, "--size", 32, "--out", root / name, "--device", "cpu"]) == 0
    return root


@pytest.fixture
def cli(cli, made, tmp_path, monkeypatch):
    """Types a command beside all of it, the published model tiny: (exit status, output, errors)."""
    monkeypatch.setenv("HALFSTEP_CACHE", str(tmp_path / "cache"))
    for name, short in (("l-photos-0.18215", "l"), ("l-others-0.18215", "others"), ("codec",) * 2):
        (tmp_path / short).symlink_to(made / name)
    whole = PUBLISHED[HUGE]
    tiny = replace(whole, net={**whole.net, **TINY}, size=32)
    monkeypatch.setitem(PUBLISHED, HUGE, tiny)
    torch.manual_seed(0)
    state = tiny.blank().state_dict()
    torch.save(
        {k.removeprefix("model."): torch.randn(v.shape) * 0.05 for k, v in state.items()}, "w.pth"
    )
    return cli


def from_model(verb, out, *more):
    words = ["distill", verb, "--model", HUGE, "--weights", "w.pth", "--data", "l", "--out", out]
    return [*words, *QUICK, *more]


# A network that predicts eps is halved from where it sees the data.
LOWER = ["--times", 0.8, 0.6, 0.4, 0.2, 0.0]
HALVING = ["--start", 4, "--stop", 2, "--samples", 16, "--tolerance", 99, *FEATURES]


# A published model as a teacher.


def test_published_weights_are_reparameterised_and_then_halved(cli):
    """As docs/how-to/official-uvit.md types it: the codec is that of the latents."""
    status, out, err = cli(*from_model("reparameterise", "v"))
    assert status == 0, err
    assert re.search(rf"^teacher +{HUGE}: uvit, ", out, re.MULTILINE)
    v = Pipeline.load("v/stages/v-teacher")
    assert (v.codec.scale, v.codec.digest()) == (0.18215, load("l").codec)
    assert v.describe()["parameterisation"] == "v" and v.shape == (4, 4, 4)
    words = ["distill", "progressive", "--teacher", "v", "--data", "l", "--out", "s", *QUICK]
    status, out, err = cli(*words, *HALVING)
    assert status == 0, err
    assert json.loads(Path("s/gate.json").read_text())["decisions"][0]["steps"] == 2
    assert Pipeline.load("s/stages/0002-steps").sample(3).shape == (3, 3, 32, 32)


def test_a_run_from_published_weights_is_resumed_and_judged_against_them(cli):
    """Its config.toml names them; the official codec may be given, and is then the run's."""
    status, _, err = cli(*from_model("progressive", "s", *HALVING, *LOWER, "--codec", "codec"))
    assert status == 0, err
    config = tomllib.loads(Path("s/config.toml").read_text())
    assert config["model"] == HUGE and config["codec"] == "codec" and "teacher" not in config
    before = everything(Path("s"))
    words = ["distill", "progressive", "--config", "s/config.toml"]
    code = "tests.cli.test_teachers:corners"
    assert refused(cli(*words), f"type --features {code} on the command line")
    status, out, err = cli(*words, "--features", code)
    assert status == 0 and "finished before" in out, err
    assert everything(Path("s")) == before
    words = ["--baselines", "dpmpp-3s", "dpm-fast", "euler-maruyama", "--cost-rounds", 1]
    words += ["--full-sampler", "dpmpp-3s"]
    status, out, err = cli("evaluate", "s", *BRIEF, *words)
    assert status == 0, err
    assert "no baseline euler-maruyama: the reverse-time SDE needs a schedule" in out
    assert "no baseline dpm-fast: dpm_fast cannot go" in out
    rows = read_back(Path("s"))[0]["rows"]
    assert [row["name"] for row in rows] == [
        "teacher, dpmpp-3s, 4 steps", "teacher, dpmpp-3s, 2 steps", "student, 2 steps",
    ]  # fmt: skip
    assert all(row["cost"]["calls"] == row["steps"] for row in rows)
    teacher = PUBLISHED[HUGE].pipeline("w.pth", codec="codec")
    images = teacher.sample(1, steps=4, sampler="dpmpp-3s")[0]
    grid = read_back(Path("s"))[1]["grid"][0, 0]
    levels = ((images.permute(1, 2, 0) + 1) * 127.5).clip(0, 255).numpy()
    assert np.abs(grid - levels).max() <= 0.51
    state = torch.load("w.pth", weights_only=True)
    torch.save({key: value + 0.01 for key, value in state.items()}, "w.pth")
    got = cli("evaluate", "s", *BRIEF)
    assert refused(got, f"'{HUGE}' is not the teacher that 's' was made from, its weights differ")


def test_a_run_that_took_the_codec_of_its_latents_is_judged_with_it(cli):
    assert cli(*from_model("progressive", "s", *HALVING, *LOWER))[0] == 0
    status, _, err = cli("evaluate", "s", *BRIEF, "--baselines", "ddim", "--cost-rounds", 0)
    assert status == 0, err
    assert read_back(Path("s"))[1]["grid"].shape == (2, 12, 32, 32, 3)


@pytest.mark.parametrize(
    "words, message",
    [
        ("", "halfstep distill reparameterise needs --teacher FOLDER, or --model and --weights"),
        (f"--teacher x --model {HUGE} --weights w.pth", "give one of the two"),
        (f"--model {HUGE}", f"--model {HUGE} needs --weights: give the official file"),
        (f"--model {HUGE}r --weights w.pth", f"perhaps you meant '{HUGE}'"),
        (f"--model {HUGE} --weights v.pth", "there is no file of weights 'v.pth'"),
        (f"--model {HUGE} --weights w.pth --text codec", "this model reads no texts"),
        (f"--model {HUGE} --weights w.pth --net own:net", "--model names one: leave it out"),
        ("--teacher x --weights w.pth", "--weights and --codec belong to --model"),
        ("--teacher x --codec codec", "--weights and --codec belong to --model"),
    ],
)  # fmt: skip
def test_what_is_no_teacher_is_refused(words, message, cli):
    before = sorted(Path().iterdir())
    got = cli("distill", "reparameterise", *words.split(), "--data", "l", "--out", "x")
    assert refused(got, message)
    assert sorted(Path().iterdir()) == before


def test_latents_of_another_scale_than_the_models_are_refused(cli, made):
    words = from_model("reparameterise", "x")
    words[words.index("l")] = made / "l-photos-0.5"
    assert refused(cli(*words), "0.18215")
    assert not Path("x").exists()


def test_a_model_of_latents_without_a_codec_anywhere_says_so(cli):
    Pipeline.save(PUBLISHED[HUGE].pipeline("w.pth"), "bare")
    words = ["distill", "progressive", "--teacher", "bare", "--data", "l", "--out", "x"]
    result = cli(*words, *QUICK, *HALVING, *LOWER)
    assert refused(result, "the teacher has no codec")


# Data that was held out.


@pytest.fixture
def run(cli):
    """A run on latents, hardly trained."""
    assert cli(*from_model("progressive", "s", *HALVING, *LOWER))[0] == 0
    return Path("s")


def test_latents_that_were_held_out_are_decoded(cli, run, made):
    words = ["evaluate", run, *BRIEF, "--baselines", "ddim", "--cost-rounds", 0, "--held-out"]
    distances = []
    for place in ("others", made / "others"):
        status, _, err = cli(*words, place)
        assert status == 0, err
        rows = read_back(run)[0]["rows"]
        known = [row["memorisation"]["held_out"]["value"] for row in rows if row["memorisation"]]
        distances.append(known)
    latents, images = distances
    assert len(latents) == len(images) == 2
    student = Pipeline.load(run / "stages/0002-steps")
    decoded = student.codec.decode(load("others").batch(torch.arange(8)).x0)
    real = student.codec.decode(load("l").batch(torch.arange(8)).x0)
    from halfstep.evaluation.metrics.memorisation import TrainingImages

    look = corners()
    known = plain(
        TrainingImages.beside(look(real), look(decoded)).memorisation(look(student.sample(16)))
    )
    assert latents[-1] == pytest.approx(known["held_out"]["value"], rel=1e-4)
    assert images != latents  # the codec's loss is in one of them


def test_held_out_data_of_another_shape_is_refused_before_anything_is_sampled(
    cli, run, made, tmp_path, monkeypatch
):
    photos(tmp_path / "large", 2, side=48)
    words = ["latents", "--data", "large", "--codec", "codec", "--size", 48, "--out", "l-large"]
    assert cli(*words)[0] == 0
    np.save("gray.npy", np.zeros((9, 1, 32, 32), np.float32))
    np.save("small.npy", np.zeros((9, 3, 16, 16), np.float32))
    monkeypatch.setattr(Pipeline, "sample", None)
    for place, message in (
        ("l-large", "the held-out latents have shape [4, 6, 6] and the run's [4, 4, 4]: give latents"),
        ("gray.npy", "held-out data has samples of shape [1, 32, 32] and the run's data [3, 32, 32]"),
        ("small.npy", "small.npy has images of 16x16"),
    ):  # fmt: skip
        assert refused(cli("evaluate", run, *BRIEF, "--held-out", place), message)
    assert not (run / "report.json").exists()


# Rehearsals.


class Clock:
    """A pass of n samples takes so many seconds and so many a sample; the first, more."""

    def __init__(self, fixed, each, first=0.0):
        self.fixed, self.each, self.first, self.asked = fixed, each, first, []

    def __call__(self, count):
        self.asked.append(count)
        return self.fixed + self.each * count + self.first * (len(self.asked) == 1)


@pytest.mark.parametrize("most", [1, 2, 3, 100, 128])
def test_a_quick_pass_is_timed_with_the_whole_batch(most):
    clock = Clock(0.001, 1e-5, first=5.0)
    count, seconds = probed(clock, most)
    assert count == most == max(clock.asked)
    assert seconds == pytest.approx(0.001 + 1e-5 * most)  # the first pass does not count
    assert clock.asked[-3:] == [most] * 3


@pytest.mark.parametrize("each", [0.003, 0.02, 0.1, 0.4, 1.0, 3.0])
def test_a_slow_pass_is_timed_with_a_few_samples(each):
    clock = Clock(0.0, each)
    count, seconds = probed(clock, 1024)
    assert seconds / count == pytest.approx(each)
    first, rest = clock.asked[0] * each, sum(clock.asked[1:]) * each
    assert first == 2 * each and rest <= max(PATIENCE, first)


def test_a_pass_that_is_long_by_itself_is_not_made_again():
    clock = Clock(0.0, LONG)
    assert probed(clock, 1024) == (2, 2 * LONG) and clock.asked == [2]


class Slow(Objective):
    """An objective that takes 4 ms a sample."""

    def __call__(self, student, batch, draw):
        time.sleep(0.004 * len(batch.x0))
        return student(batch.x0).square().mean(1)


@pytest.mark.parametrize("micro", [0, 5])
def test_an_update_takes_the_time_of_all_its_samples(micro):
    stage = Stage("slow", torch.nn.Linear(2, 2), Slow(), 7)
    training = TrainingConfig(batch_size=200, micro_batch_size=micro)
    data = Dataset(torch.zeros(3, 2))
    seconds, timed = seconds_per_update(stage, data, training, torch.device("cpu"))
    assert 2 <= timed <= (micro or 128) and 0.8 <= seconds < 1.6


def test_a_published_recipe_is_rehearsed_in_seconds(cli):
    """Its batch is not drawn, and its fp16, which a CPU has not, is not timed."""
    words = ["distill", "reparameterise", "--model", HUGE, "--weights", "w.pth", "--data", "l"]
    words += [
        "--out",
        "x",
        "--batch-size",
        10**6,
        "--precision",
        "fp16",
        "--dry-run",
        "--device",
        "cpu",
    ]
    status, out, err = cli(*words)
    assert status == 0 and not err, err
    match = re.search(r"^time +about (.+) on cpu, .*: an estimate from (\d+) samples", out, re.M)
    assert match and 2 <= int(match[2]) < 10**6 and "in bf16; fp16 is far slower on a CPU" in out
    assert not Path("x").exists()
