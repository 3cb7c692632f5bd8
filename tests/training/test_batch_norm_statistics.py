"""Averages of weights, statistics of batch norms, and the caller's random state."""

import copy
import random
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from halfstep import (
    build,
    Cosine,
    Dataset,
    Denoiser,
    distill,
    GuidedDistillation,
    storage,
    train,
    TrainingConfig,
    V,
)
from halfstep.data import rows
from halfstep.errors import ConfigError, NonFinite
from halfstep.methods import DenoiserOnly, Denoising
from halfstep.methods.base import Method
from halfstep.methods.classifiers.recipes import dist
from halfstep.methods.stages import Objective, Stage, StagePlan
from halfstep.training.batch_norm import BATCH, update_batch_norm
from halfstep.training.ema import Average
from tests.support.user_networks import (
    classifier,
    classify,
    HALVE,
    images,
    learn,
    pipeline,
    points,
    Towards,
)

# Averages


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_an_average_follows_in_any_precision(dtype):
    net = nn.Linear(1, 1, bias=False, dtype=dtype)
    nn.init.zeros_(net.weight)
    average = Average(net, 0.999)
    average.follow(net.parameters(), 0)
    nn.init.ones_(net.weight)
    for update in range(1, 3001):
        average.follow(net.parameters(), update)
    assert average.values[0].dtype == torch.promote_types(dtype, torch.float32)
    assert float(average.values[0]) == pytest.approx(1 - 0.999**3000, abs=1e-4)
    average.copy_to(net)
    assert net.weight.dtype == dtype and float(net.weight.detach()) == pytest.approx(0.95, abs=0.01)


class Shown(Objective):
    """An objective that calls its student with the data, in any mode."""

    def __call__(self, student, batch, draw):
        return student(batch.x0).square().flatten(1).mean(1)


NORMS = [
    nn.BatchNorm1d(2),
    nn.BatchNorm1d(2, momentum=None),
    nn.BatchNorm1d(2, momentum=0.9, affine=False),
    nn.SyncBatchNorm(2),
]


@pytest.mark.parametrize("norm", NORMS, ids=str)
@pytest.mark.parametrize("n", [1, 50, 640])
def test_statistics_taken_anew_are_those_of_the_data(norm, n):
    net, data = nn.Sequential(copy.deepcopy(norm), nn.Dropout(0.5)), points(n)
    momentum = net[0].momentum
    net[0].running_mean.fill_(7)
    net[0].num_batches_tracked.fill_(1000)  # what was there before does not count
    state = torch.get_rng_state()
    update_batch_norm(Stage("s", net, Shown(), 1), data, torch.device("cpu"), seed=3, index=0)
    assert torch.equal(state, torch.get_rng_state())
    assert net[0].momentum == momentum and "forward" not in vars(net[0]) and net[0].training
    torch.testing.assert_close(net[0].running_mean, data.values.mean(0), atol=0.05, rtol=0)
    if n > 1:
        torch.testing.assert_close(net[0].running_var, data.values.var(0), atol=0.05, rtol=0)
    again = nn.Sequential(copy.deepcopy(norm), nn.Dropout(0.5))
    update_batch_norm(Stage("s", again, Shown(), 1), data, torch.device("cpu"), seed=3, index=0)
    assert torch.equal(again[0].running_mean, net[0].running_mean)
    other = nn.Sequential(copy.deepcopy(norm), nn.Dropout(0.5))
    update_batch_norm(Stage("s", other, Shown(), 1), data, torch.device("cpu"), seed=3, index=1)
    assert n == 1 or not torch.equal(other[0].running_var, net[0].running_var) or n == 640


def test_statistics_of_instance_norms_are_a_mean_over_all_batches():
    net = nn.Sequential(nn.InstanceNorm2d(1, track_running_stats=True, momentum=0.3))
    shades = torch.linspace(0, 255, 200)[:, None, None, None].expand(-1, 1, 8, 8)
    data = Dataset(shades.round().to(torch.uint8))
    net[0].running_mean.fill_(7)
    update_batch_norm(Stage("s", net, Shown(), 1), data, torch.device("cpu"), seed=5, index=0)
    drawn = torch.cat([rows(5, 0, k, BATCH, 200) for k in range(4)])
    assert set(drawn.tolist()) == set(range(200))
    want = data.batch(drawn).x0.mean((0, 2, 3))
    torch.testing.assert_close(net[0].running_mean, want, atol=1e-5, rtol=0)
    assert net[0].momentum == 0.3


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_an_average_is_saved_with_statistics_of_its_own(tmp_path, ema):
    """Those of its weights on data that is noised as training does; without an average they are the run's."""
    method, teacher = Denoising(updates=30), pipeline("points_net")
    training = TrainingConfig(
        batch_size=32, ema=ema, learning_rate=0.03, log_every=10, save_every=30
    )
    out = tmp_path / "r"
    net = train(teacher, points(640), out, method=method, training=training).denoiser.net
    tensors, _ = storage.load(out / "checkpoints" / "00-00000030")
    same = torch.equal(tensors["student.net.norm.running_mean"], net.norm.running_mean)
    assert same == (ema == 0)
    if ema:
        assert torch.equal(tensors["average.net.enter.weight"], net.enter.weight)
        generator = torch.Generator().manual_seed(0)
        t = torch.rand(20_000, generator=generator, dtype=torch.float64)
        x0 = points(640).values[torch.randint(640, (20_000,), generator=generator)]
        level = Cosine().at(t[:, None])
        noise = torch.randn(20_000, 2, generator=generator)
        x_t = level.alpha.float() * x0 + level.sigma.float() * noise
        with torch.no_grad():
            h = net.enter(torch.cat([x_t, t[:, None].float()], 1))
        torch.testing.assert_close(net.norm.running_mean, h.mean(0), atol=0.1, rtol=0)
        torch.testing.assert_close(net.norm.running_var, h.var(0), atol=0.1, rtol=0.2)


# One row


@pytest.mark.parametrize("batch, micro", [(9, 4), (1, 0), (4, 1), (7, 3), (3, 2), (1, 5)])
def test_one_row_under_batch_norm_is_refused_before_there_is_a_folder(tmp_path, batch, micro):
    training = TrainingConfig(batch_size=batch, micro_batch_size=micro)
    net = classifier("normed")
    before = copy.deepcopy(net.state_dict())
    for call in (classify, learn):
        with pytest.raises(ConfigError, match="one row"):
            call(net, tmp_path / "r", training)
        assert not (tmp_path / "r").exists()
    with pytest.raises(ConfigError, match="one row"):
        distill(pipeline("points_net"), points(), tmp_path / "r", method=HALVE, training=training)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    with pytest.raises(ConfigError) as caught:
        classify(net, tmp_path / "r", training)
    name, _, value = str(caught.value).split("write ")[1].split(" ")[0].partition("=")
    better = {"batch_size": batch, "micro_batch_size": micro, name: int(value)}
    classify(net, tmp_path / "r", TrainingConfig(**better))


def test_one_row_is_fine_where_it_can_be_trained(tmp_path):
    training = TrainingConfig(batch_size=9, micro_batch_size=4)
    classify(classifier(), tmp_path / "a", training)
    net = classifier("normed")
    net[2].requires_grad_(False)  # its statistics are what they are
    classify(net, tmp_path / "b", training)
    with pytest.raises(ConfigError, match="one row"):  # a loss that compares rows
        learn(classifier(), tmp_path / "c", training, terms=dist())
    assert not (tmp_path / "c").exists()


# The caller's random state


def states():
    return torch.get_rng_state(), np.random.get_state()[1], random.getstate()


def alike(one, other):
    return torch.equal(one[0], other[0]) and (one[1] == other[1]).all() and one[2] == other[2]


@dataclass(frozen=True)
class Drawing(Towards):
    """It draws from everywhere, and may fail."""

    goal: float = 0.0
    fails: bool = False

    def __call__(self, student, batch, draw):
        loss = super().__call__(student, batch, draw)
        torch.rand(3), np.random.rand(3), random.random()
        return loss * (float("nan") if self.fails else 1)


@dataclass(frozen=True)
class Draws(Method):
    fails: bool = False

    def plan(self, teacher):
        return [StagePlan("mine", 2)]

    def stages(self, teacher):
        torch.rand(1)
        yield Stage("mine", teacher.denoiser.trainable_copy(), Drawing(fails=self.fails), 2)


@pytest.mark.parametrize("fails", [False, True])
def test_training_leaves_the_callers_random_state(tmp_path, fails):
    net, teacher, data, few = (
        classifier("normed"),
        pipeline(),
        points(),
        TrainingConfig(batch_size=8, ema=0.5),
    )
    guided = Denoiser(build("mlp", {"width": 8, "num_classes": 3}), Cosine(), V())
    shown, before = images(), states()
    calls = [
        lambda: distill(teacher, data, tmp_path / "a", method=Draws(fails), training=few),
        lambda: train(teacher, data, tmp_path / "b", method=Denoising(updates=1), training=few),
        lambda: classify(net, tmp_path / "c", few, data=shown),
        lambda: classify("cnn", tmp_path / "d", few, data=shown),
        lambda: teacher.sample(3, steps=2),
        lambda: next(GuidedDistillation(guidance_embed_dim=4).stages(DenoiserOnly(guided, 2))),
    ]
    for call in calls[: 1 if fails else None]:
        if fails:
            with pytest.raises(NonFinite):
                call()
        else:
            call()
        assert alike(before, states())


def test_statistics_are_taken_of_other_draws_in_every_batch_and_stage():
    seeds = []

    class Drawn(Shown):
        def __call__(self, student, batch, draw):
            seeds.append(draw.generator.initial_seed())
            return super().__call__(student, batch, draw)

    for index in (0, 1):
        net = nn.Sequential(nn.BatchNorm1d(2))
        stage = Stage("s", net, Drawn(), 1)
        update_batch_norm(stage, points(3 * BATCH), torch.device("cpu"), seed=3, index=index)
    assert len(seeds) == len(set(seeds)) == 6
