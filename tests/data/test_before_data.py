"""Refusals of teachers, grids and shapes before data are read or trained on."""

from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from halfstep.data import as_data, refuse_other_shape
from halfstep.diffusion.denoiser import Denoiser, NetTime
from halfstep.diffusion.prediction import V
from halfstep.diffusion.samplers import encode, sample
from halfstep.diffusion.schedules import BetaTable, Cosine, Level
from halfstep.diffusion.time_grids import on_schedule, uniform
from halfstep.errors import ConfigError
from halfstep.methods import (
    Chain,
    DenoiserOnly,
    Denoising,
    Encoder,
    GuidedDistillation,
    Progressive,
    Shrink,
    Stochastic,
)
from halfstep.models import build
from halfstep.pipeline import Pipeline
from halfstep.training import distill, train, TrainingConfig

MLP = {"dim": 2, "width": 8, "depth": 1, "num_classes": 4}


def teacher(schedule=None, **options):
    denoiser = Denoiser(build("mlp", MLP), schedule or BetaTable(), V(), time=NetTime(offset=-1))
    return Pipeline(denoiser, (2,), class_names=("0", "1", "2"), null=3, **options)


class NeverRead(torch.utils.data.Dataset):
    """Data of which nothing may be asked."""

    def __len__(self):
        raise AssertionError("the data were read")


GUIDED = {"guidance_range": (1.0, 2.0), "updates": 5}
LONG = Progressive(start=1024, stop=512, updates=(5,))
BETWEEN = Progressive(start=4, stop=2, updates=(5,), times=(1.0, 0.5, 0.1, 0.05, 0.0005))


@pytest.mark.parametrize(
    "method",
    [
        Progressive(start=1024, stop=512, updates=(5,)),
        Progressive(start=1024, stop=1, updates=(5,)),
        Progressive(start=1024, stop=512, updates=(5,), grid="uniform"),
        Progressive(start=1024, stop=512, updates=(5,), grid="trailing"),
        BETWEEN,
        Stochastic(start=2048, stop=1024, updates=(5,)),
        Encoder(start=1024, stop=512, updates=(5,)),
        GuidedDistillation(halving=LONG, **GUIDED),
        GuidedDistillation(halving=BETWEEN, **GUIDED),
        GuidedDistillation(halving=Progressive(start=8, stop=4), levels=1024, **GUIDED),
        Chain(shrink=Shrink(student={"width": "4"}, updates=5), then=LONG),
        Shrink(student={"width": "4"}, updates=5, levels=1001),
    ],
    ids=lambda method: type(method).__name__,
)
def test_a_grid_is_looked_up_before_data_are_read(method, tmp_path):
    with pytest.raises(ConfigError, match="level"):
        method.check(teacher())
    with pytest.raises(ConfigError, match="level"):
        distill(teacher(), NeverRead(), tmp_path / "r", method=method)
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    "schedule, levels",
    [(BetaTable(), 1001), (BetaTable(), 2**40), (BetaTable(levels=8, zero_snr=True), 9)],
)
def test_times_that_training_draws_are_looked_up_before_data_are_read(schedule, levels, tmp_path):
    method = Denoising(updates=5, levels=levels)
    with pytest.raises(ConfigError, match="level"):
        train(teacher(schedule), NeverRead(), tmp_path / "r", method=method)
    assert not (tmp_path / "r").exists()


class Still:
    """A schedule of a user's own that stands still in its middle."""

    variance_preserving = True

    def at(self, t):
        angle = t.clamp(max=0.25) + (t - 0.75).clamp(min=0)
        return Level((3 * angle).cos(), (3 * angle).sin())


@pytest.mark.parametrize("method", [Progressive(start=8, stop=2), Stochastic(start=8, stop=2)])
def test_a_schedule_that_stands_still_cannot_be_halved(method):
    """Two steps between equal levels have no target: 0 / 0 would be found by chance."""
    still = Denoiser(build("mlp", MLP), Still(), V())
    with pytest.raises(ConfigError, match="levels at"):
        method.check(DenoiserOnly(still))
    moving = BetaTable("trained_betas", 8, betas=(0.1,) * 8)
    assert len(list(method.stages(DenoiserOnly(teacher(moving).denoiser)))) == 2


class Broken:
    """A schedule of a user's own without a level at its middle."""

    variance_preserving = True

    def at(self, t):
        return Level(torch.where(t == 0.5, torch.nan, 1 - t), t)


def test_a_level_that_is_not_finite_is_refused():
    assert on_schedule(uniform(3), Broken()) == uniform(3)
    with pytest.raises(ConfigError, match="finite"):
        on_schedule(uniform(2), Broken())


class Counting:
    """A denoiser that counts its calls."""

    def __init__(self, schedule):
        self.schedule, self.calls = schedule, 0

    def __call__(self, x_t, t, cond=None):
        self.calls += 1
        raise AssertionError("the network was called")


@pytest.mark.parametrize("function", [sample, encode])
def test_a_walk_is_looked_up_before_the_network_is_asked(function):
    with pytest.raises(ConfigError, match="level"):
        function(Counting(BetaTable()), torch.zeros(1, 2), uniform(1024))


@pytest.mark.parametrize(
    "sampler", ["ddim", "heun", "dpmpp-2m", "ancestral", "diffusers:DDIMScheduler"]
)
def test_a_pipeline_refuses_such_a_walk_at_once(sampler):
    pipeline = teacher()
    pipeline.denoiser.register_forward_pre_hook(
        lambda *arguments: pytest.fail("the network was called")
    )
    with pytest.raises(ConfigError, match="level"):
        pipeline.grid(1024, sampler)
    with pytest.raises(ConfigError, match="level"):
        pipeline.sample(2, steps=1024, sampler=sampler)
    with pytest.raises(ConfigError, match="level"):
        pipeline.encode(torch.zeros(2, 2), steps=1024)
    with pytest.raises(ConfigError, match="level"):
        teacher(times=((1.0, 0.5, 0.0004, 0.0),)).sample(2)


@pytest.mark.parametrize(
    "method", [None, Progressive(start=4, stop=2), Shrink(student={"width": "4"})]
)
def test_a_condition_that_a_network_does_not_get_leaves_no_folder(method, tmp_path):
    """A network of classes in a pipeline that has none: it is told no label."""
    lacking, out = replace(teacher(Cosine()), class_names=(), null=None), tmp_path / "r"
    with pytest.raises(ConfigError, match="labels"):
        if method is None:
            train(lacking, "two-moons", out, method=Denoising(updates=5))
        else:
            distill(lacking, "two-moons", out, method=method)
    assert not out.exists()


class Recorder(nn.Module):
    """Records the dtypes of its inputs, and reads time and scale; its copies share `inputs`."""

    inputs: ClassVar[set] = set()

    def __init__(self, dtype):
        super().__init__()
        self.line, self.of_time, self.of_scale = (
            nn.Linear(width, 2, dtype=getattr(torch, dtype)) for width in (2, 1, 1)
        )

    def forward(self, x, t, cond=None):
        self.inputs.add((x.dtype, t.dtype, torch.is_autocast_enabled("cpu")))
        out = self.line(x) + self.of_time(t[:, None].to(x.dtype) if x.itemsize < 4 else t[:, None])
        return out if cond is None else out + self.of_scale(cond.guidance_scale[:, None])


@pytest.mark.parametrize(
    "dtype, precision, expected",
    [
        ("float64", "fp32", (torch.float64, torch.float64, False)),
        ("float32", "fp32", (torch.float32, torch.float32, False)),
        ("bfloat16", "fp32", (torch.bfloat16, torch.float32, False)),
        ("float32", "bf16", (torch.float32, torch.float32, True)),
        ("float64", "bf16", (torch.float64, torch.float64, True)),
    ],
)
@pytest.mark.parametrize("method", [None, Progressive(start=4, stop=2, updates=(2,))])
def test_a_network_is_tried_as_it_is_trained(method, dtype, precision, expected, tmp_path):
    net = build("tests.data.test_before_data:Recorder", {"dtype": dtype})
    pipeline = Pipeline(Denoiser(net, Cosine(), V()), (2,))
    Recorder.inputs.clear()
    options = {"training": TrainingConfig(batch_size=4, precision=precision, ema=0)}
    if method is None:
        train(pipeline, "two-moons", tmp_path / "r", method=Denoising(updates=2), **options)
    else:
        distill(pipeline, "two-moons", tmp_path / "r", method=method, **options)
    in_full = (
        {(*expected[:2], False)} if method is None else set()
    )  # whether it fits is asked in fp32
    assert Recorder.inputs == {expected, *in_full}


def test_a_scale_is_told_as_it_is_trained(tmp_path):
    net = build("tests.data.test_before_data:Recorder", {"dtype": "float64"})
    pipeline = Pipeline(Denoiser(net, Cosine(), V()), (2,), guidance_range=(1.0, 2.0))
    method, training = Progressive(start=4, stop=2, updates=(2,)), TrainingConfig(batch_size=4)
    student = distill(pipeline, "two-moons", tmp_path / "r", method=method, training=training)
    assert student.guidance_range == (1.0, 2.0)


# -- the teacher, before the data ------------------------------------------------------------------


def student(**options):
    return teacher(Cosine(), times=(uniform(4),), **options)


@pytest.mark.parametrize(
    "pipeline, method",
    [
        (student(), Progressive(start=8, stop=2)),
        (student(), Shrink(student={"width": "4"})),
        (student(sampler="stochastic"), Progressive(start=4, stop=2)),
        (teacher(Cosine()), Shrink(depth=2)),
        (teacher(Cosine()), Progressive(start=8, stop=2, target_clip=1.0)),
    ],
)
def test_what_the_teacher_refuses_is_refused_before_data_are_read(pipeline, method, tmp_path):
    with pytest.raises(ConfigError):
        distill(
            pipeline,
            NeverRead(),
            tmp_path / "r",
            method=method,
            training=TrainingConfig(batch_size=4),
        )
    assert not (tmp_path / "r").exists()


@pytest.fixture
def unread(tmp_path, monkeypatch):
    """A folder of pictures of 8 x 8, whose pixels may not be read all."""
    for name in ("a", "b"):
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / f"{name}.png")
    monkeypatch.setattr(
        "halfstep.data.sources.image_files._read_all",
        lambda *arguments: pytest.fail("it was read"),
    )
    return tmp_path


@pytest.mark.parametrize(
    "shape, options",
    [
        ((1, 16, 16), {}),
        ((1, 8, 4), {}),
        ((4, 8, 8), {}),
        ((2,), {}),
        ((1, 8, 8), {"size": 16}),
        ((1, 8, 8), {"channels": 3}),
        ((3, 8, 8), {"size": 8, "channels": 1}),
    ],
)
def test_a_folder_of_other_samples_is_refused_before_it_is_read(unread, shape, options):
    with pytest.raises(ConfigError, match="shape"):
        refuse_other_shape(str(unread), shape, **options)
    if not options:
        with pytest.raises(ConfigError, match="shape"):
            as_data(unread, shape=shape)


@pytest.mark.parametrize(
    "shape, options", [((1, 8, 8), {}), ((3, 8, 8), {}), ((3, 4, 4), {"size": 4})]
)
def test_a_folder_that_may_have_such_samples_is_not(unread, shape, options):
    refuse_other_shape(str(unread), shape, **options)


def test_names_are_not_looked_at():
    for name in ("digits", "two-moons", "cifar10:here", "no-such-folder", ""):
        refuse_other_shape(name, (5, 6, 7))
