"""Watching a run: its log, pictures of the averaged student, and that neither changes a bit of it."""

import json
from dataclasses import replace
from datetime import datetime, UTC
from mmap import mmap
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from halfstep.data import NoData
from halfstep.diffusion.denoiser import Denoiser
from halfstep.diffusion.prediction import V
from halfstep.diffusion.schedules import Cosine
from halfstep.errors import ConfigError
from halfstep.methods import Denoising, METHODS
from halfstep.models import build
from halfstep.models.lora import Lora
from halfstep.pictures import points_picture, tile
from halfstep.pipeline import Pipeline
from halfstep.training import distill, RunOptions, train, TrainingConfig
from halfstep.training.ema import Average
from halfstep.training.pace import memory_in_use, Pace
from halfstep.training.run_folder import RunFolder
from halfstep.training.sample_grid import SampleGrid
from halfstep.training.update import update
from halfstep.training.watch import scalars
from tests.support import latent_runs
from tests.support.runs import (
    At,
    bits,
    Crash,
    crash,
    forgetful,
    halve,
    job,
    TRAINING,
)
from tests.support.watched import images, pictured, pipeline


def names(out):
    return sorted(path.name for path in (out / "samples").glob("*"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("watched") / "r"
    pictured(out)
    return out


# The log.


def test_a_line_has_the_time_the_pace_and_the_memory(run):
    lines = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
    updates = [line for line in lines if "loss" in line]
    for line in updates:
        age = datetime.now(UTC) - datetime.fromisoformat(line["time"])
        assert 0 <= age.total_seconds() < 600
        assert 0 < line["samples_per_second"] < 1e6
        assert 2**20 < line["memory"] < 2**45
    assert [line["update"] for line in updates][:3] == [3, 4, 6]


def test_the_pace_is_samples_over_seconds_since_the_last_restart():
    clock = iter([10.0, 14.0, 20.0, 22.0])
    pace = Pace(lambda: next(clock))
    assert pace.samples_per_second(12) == 12 / 4
    pace.restart()
    assert pace.samples_per_second(12) == 12 / 2


@pytest.mark.parametrize("samples_every, log_every", [(1, 4), (0, 7)])
def test_pace_and_cost_of_a_run_leave_drawing_out(tmp_path, monkeypatch, samples_every, log_every):
    """Updates of 2 seconds, pictures of 24."""
    clock, draw = {"now": 0.0}, SampleGrid.draw

    def now():
        return clock["now"]

    def slow(self, student):
        clock["now"] += 24
        return draw(self, student)

    def train(*given, **options):
        clock["now"] += 2
        return update(*given, **options)

    monkeypatch.setattr(Pace.__init__, "__defaults__", (now,))
    monkeypatch.setattr("halfstep.training.watch.monotonic", now)
    monkeypatch.setattr("halfstep.training.loop.time", SimpleNamespace(monotonic=now))
    monkeypatch.setattr("halfstep.training.loop.update", train)
    monkeypatch.setattr(SampleGrid, "draw", slow)
    pictured(tmp_path, samples_every=samples_every, log_every=log_every, save_every=100)
    run = RunFolder.open(tmp_path)
    paces = [line["samples_per_second"] for line in run.metrics if "loss" in line]
    assert set(paces) == {TRAINING.batch_size / 2} and len(paces) == (21 if samples_every else 3)
    assert run.cost["seconds"] == 2 * (7 + 14)


def test_memory_is_that_of_this_process():
    before = memory_in_use(torch.device("cpu"))
    # Pages of its own: malloc would take what earlier tests have freed.
    held = mmap(-1, 2**25)
    np.frombuffer(held, np.uint8)[:] = 1
    assert memory_in_use(torch.device("cpu")) - before > 0.9 * len(held)


def test_numbers_by_the_names_of_trackers():
    line = {"stage": "s", "update": 3, "loss": 1, "rate": 0.5, "norm": 2.0, "flag": True, "none": None,
            "terms": {"soft": 3.0, "deep": {"x": 4}}}  # fmt: skip
    assert dict(scalars(line)) == {
        "loss": 1, "learning_rate": 0.5, "grad_norm": 2, "terms/soft": 3, "terms/deep/x": 4
    }  # fmt: skip


# Pictures.


def test_a_picture_every_few_updates_and_after_the_last(run):
    assert names(run) == [
        *(f"0002-steps-{k:08d}.png" for k in (3, 6, 9, 12, 14)),
        *(f"0004-steps-{k:08d}.png" for k in (3, 6, 7)),
    ]


def test_the_last_picture_is_the_finished_student_s(run):
    """Its average, in its own sampler and steps, of seed 0: 16 images of 4 pixels, 4 in a row, enlarged."""
    student = RunFolder.open(run).student(2)
    sheet = tile(student.sample(16), columns=4)[..., 0]
    with Image.open(run / "samples/0002-steps-00000014.png") as opened:
        pixels = np.asarray(opened)
    scale = pixels.shape[1] // sheet.shape[1]
    assert pixels.shape == (19 * scale, 19 * scale) and scale == 16
    assert np.array_equal(pixels[::scale, ::scale], sheet)
    assert np.array_equal(pixels, sheet.repeat(scale, 0).repeat(scale, 1))


@pytest.mark.parametrize(
    "options",
    [{}, {"ema": 0.0}, {"precision": "bf16"}, {"micro_batch_size": 4}, {"lora": Lora(rank=2)}],
    ids=str,
)
def test_drawing_changes_no_bit(tmp_path, options):
    pictured(tmp_path / "a", samples_every=0, **options)
    pictured(tmp_path / "b", samples_every=2, **options)
    assert not (tmp_path / "a/samples").exists() and names(tmp_path / "b")
    assert bits(tmp_path / "a") == bits(tmp_path / "b")
    last = "checkpoints/01-00000014.safetensors"  # with moments and average
    assert (tmp_path / "a" / last).read_bytes() == (tmp_path / "b" / last).read_bytes()


def test_drawing_changes_no_bit_of_dropout_and_batch_norm(tmp_path, monkeypatch):
    """Of points in the plane, by a network that a resumed run could get wrong."""
    monkeypatch.setattr("halfstep.training.api.why_undrawn", lambda *given: "")
    monkeypatch.setattr(
        SampleGrid, "draw", lambda self, student: points_picture(student.sample(9)[:, :2])
    )
    for out, every in (("a", 0), ("b", 1)):
        halve(tmp_path / out, pipeline=forgetful(), job=job(samples_every=every))
    assert bits(tmp_path / "a") == bits(tmp_path / "b") and names(tmp_path / "b")


def test_after_a_crash_the_pictures_are_those_of_one_run(tmp_path, run):
    with pytest.raises(Crash):
        pictured(tmp_path, callback=At("0002-steps", 8, crash))
    stale = tmp_path / "samples/0002-steps-00000099.png"
    stale.write_bytes(b"of updates that are done again")
    pictured(tmp_path)
    assert names(tmp_path) == names(run)
    for name in names(run):
        assert (tmp_path / "samples" / name).read_bytes() == (run / "samples" / name).read_bytes()


def test_another_number_of_updates_goes_on(tmp_path):
    with pytest.raises(Crash):
        pictured(tmp_path, callback=At("0002-steps", 8, crash))
    notes = At("", 0, None)
    pictured(tmp_path, samples_every=7, callback=notes)
    assert notes.notes == ["samples_every was 3, now 7, from update 6 of 0002-steps on"]
    assert names(tmp_path)[:4] == [f"0002-steps-{k:08d}.png" for k in (3, 6, 7, 14)]


def test_a_sampler_that_diverges_is_a_note(tmp_path, monkeypatch):
    monkeypatch.setattr(Pipeline, "sample", lambda *a, **k: torch.full((16, 1, 4, 4), torch.nan))
    notes = At("", 0, None)
    pictured(tmp_path, callback=notes, samples_every=7)
    assert "no samples of 0004-steps at update 7: some pixels are nan" in notes.notes[0]
    assert len(RunFolder.open(tmp_path).stages) == 2


def test_memory_that_is_missing_is_a_note(tmp_path, monkeypatch):
    def draw(self, student):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(SampleGrid, "draw", draw)
    notes = At("", 0, None)
    pictured(tmp_path, callback=notes, samples_every=14)
    assert notes.notes[-1].endswith("they need more memory than the training leaves")


def test_samples_that_are_no_picture_are_refused(tmp_path):
    with pytest.raises(
        ConfigError, match=r"samples of shape \[3\] are no picture: leave samples_every out"
    ):
        halve(tmp_path / "r", job=job(samples_every=2))
    with pytest.raises(ConfigError, match="an encoder goes from images to noise"):
        distill(
            pipeline(), images(), tmp_path / "r", training=TRAINING, job=job(samples_every=2),
            method=METHODS["encoder"](start=4, stop=2, updates=(2,)),
        )  # fmt: skip
    assert not (tmp_path / "r").exists()
    for wrong in (-1, 1.5, "2", True):
        with pytest.raises(ConfigError, match="samples_every"):
            RunOptions(samples_every=wrong)


def test_how_often_by_default():
    few = TrainingConfig(save_every=70)
    assert RunOptions().samples_of(few, "") == 0
    assert RunOptions(log=("tensorboard",)).samples_of(few, "") == 70
    assert RunOptions(log="tensorboard", samples_every=0).samples_of(few, "") == 0
    assert RunOptions(log=("tensorboard",)).samples_of(few, "no picture") == 0
    assert RunOptions(samples_every=9).samples_of(few, "") == 9


def test_points_of_a_plane(tmp_path):
    torch.manual_seed(0)
    moons = Pipeline(Denoiser(build("mlp", {"width": 8}), Cosine(), V()), (2,), steps=2)
    train(
        moons, "two-moons", tmp_path, method=Denoising(updates=2), training=TRAINING,
        job=job(samples_every=2),
    )  # fmt: skip
    drawn = RunFolder.open(tmp_path).stage("teacher")
    with Image.open(tmp_path / "samples/teacher-00000002.png") as opened:
        pixels = np.asarray(opened)
    expected = points_picture(drawn.sample(2000))[..., 0].repeat(2, 0).repeat(2, 1)
    assert np.array_equal(pixels, expected)


def test_where_a_point_is_drawn():
    """x to the right and y upwards, from -1.4 to 1.4 over 256 pixels; dots of three pixels a side."""
    picture = points_picture(torch.tensor([[0.0, 0.0], [1.0, 1.3], [5.0, 0.0]]))[..., 0]
    black = {(int(r), int(c)) for r, c in np.argwhere(picture == 0)}
    around = lambda r, c: {(r + i, c + j) for i in (-1, 0, 1) for j in (-1, 0, 1)}  # noqa: E731
    across = int((1.0 / 1.4 + 1) / 2 * 256)
    up = 255 - int((1.3 / 1.4 + 1) / 2 * 256)
    assert black == around(127, 128) | around(up, across)


# The conditions of samples.


class Seen:
    """A student that remembers how it was sampled."""

    def __init__(self, pipeline):
        self.pipeline, self.given = pipeline, {}

    def __getattr__(self, name):
        return getattr(self.pipeline, name)

    def sample(self, n, **given):
        self.given = given
        return self.pipeline.sample(n, **given)


def test_latents_are_decoded_at_the_data_s_texts():
    data = latent_runs.latents(texts=True)
    seen = Seen(latent_runs.pipeline(data, texts=True))
    picture = SampleGrid(data, torch.device("cpu")).draw(seen)
    assert picture.shape == (4 * 9 - 1, 4 * 9 - 1, 1)  # of 8 pixels, by a codec of factor 2
    rows = torch.arange(16) * len(data) // 16
    expected = data.batch(rows).cond.encoder_hidden_states
    assert torch.equal(seen.given["prompts"].encoder_hidden_states, expected)
    assert seen.given["batch"] == 4 and "labels" not in seen.given
    assert np.array_equal(picture, SampleGrid(data, torch.device("cpu")).draw(seen))


def test_labels_are_the_classes_in_turn_or_those_of_walks():
    data = latent_runs.latents()
    seen = Seen(latent_runs.pipeline(data))
    SampleGrid(data, torch.device("cpu")).draw(seen)
    assert "labels" not in seen.given and "prompts" not in seen.given
    walks = NoData(labels=torch.tensor([1, 0, 1]), shape=(2, 4, 4), names=("a", "b"))
    SampleGrid(walks, torch.device("cpu")).draw(seen)
    assert seen.given["labels"] == [1, 0, 1] * 5 + [1]


def test_a_student_of_a_range_has_the_middle_of_its_scales():
    data = latent_runs.latents()
    given = SampleGrid(data, torch.device("cpu"))._conditions
    student = latent_runs.pipeline(data)
    assert "guidance_scale" not in given(student, 16)
    assert given(replace(student, guidance_range=(1.0, 4.0)), 16)["guidance_scale"] == 2.5


# The average.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_average_and_weights_change_places_and_back(dtype):
    torch.manual_seed(0)
    net = torch.nn.Linear(3, 2).to(dtype)
    average = Average(net, 0.9)
    with torch.no_grad():
        for value in average.values:
            value.add_(0.123456789)
    own = [p.detach().clone() for p in net.parameters()]
    values = [value.clone() for value in average.values]
    with pytest.raises(RuntimeError, match="inside"), average.swapped_into(net):
        for parameter, value in zip(net.parameters(), values, strict=True):
            assert torch.equal(parameter, value.to(dtype))
        raise RuntimeError("inside")
    assert all(map(torch.equal, net.parameters(), own))
    assert all(map(torch.equal, average.values, values))
