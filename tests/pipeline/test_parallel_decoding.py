"""Pipelines of parallel decoding: the steps that they take, what is saved, and fused students."""

from dataclasses import replace

import pytest
import torch

from halfstep.batch import Cond
from halfstep.diffusion.block_weights import block_weights
from halfstep.diffusion.prediction import Eps
from halfstep.diffusion.schedules import Cosine, VPLinear
from halfstep.diffusion.time_grids import uniform
from halfstep.errors import ConfigError
from halfstep.models import build, recipe
from halfstep.pipeline import Pipeline
from halfstep.pipeline.fused import fused
from tests.support.denoisers import named, READS
from tests.support.networks import TINY
from tests.support.parallel import FINE, parallel


def test_it_takes_every_number_of_steps_between_those_of_its_grids():
    """Blocks nearest the data are halved where the steps do not divide: 3 are blocks of 4, 2 and 2."""
    student = parallel()
    assert [student.grid(n) for n in (1, 2, 4)] == [FINE[::8], FINE[::4], FINE[::2]]
    assert student.grid(3) == (1.0, 0.5, 0.25, 0.0)
    assert len(student.sample(2, steps=3)) == 2
    for steps in (5, 8):  # their blocks were not trained
        with pytest.raises(ConfigError, match="1 to 4"):
            student.grid(steps)


def test_a_sample_is_the_walk_in_blocks_by_hand():
    student = parallel(clip=0.4)
    noise = torch.randn(3, 2)
    x, schedule = noise, Cosine()
    for n, end in ((0, 4), (4, 6), (6, 8)):
        [weights] = block_weights(schedule, FINE, torch.tensor([n]), torch.tensor([end]))
        t = torch.full((3,), FINE[n], dtype=torch.float64)
        cond = Cond(heads=weights.expand(3, 8))
        with torch.no_grad():
            x0 = student.denoiser(x, t, cond).x0.clamp(-0.4, 0.4)  # of the block, not of each head
        level = schedule.at(torch.tensor(FINE[n], dtype=torch.float64))
        to = schedule.at(torch.tensor(FINE[end], dtype=torch.float64))
        eps = (x - level.alpha * x0) / level.sigma
        x = x0 if end == 8 else to.alpha * x0 + to.sigma * eps
    torch.testing.assert_close(
        student.sample(3, noise=noise, steps=3), x.float(), rtol=1e-5, atol=1e-5
    )


def test_it_is_saved_and_loaded(tmp_path):
    student = parallel()
    student.save(tmp_path / "s")
    again = Pipeline.load(tmp_path / "s")
    for steps in (1, 2, 3, 4):
        assert torch.equal(again.sample(3, steps=steps), student.sample(3, steps=steps))
    assert again.fine_times == FINE and recipe(again.denoiser.net)[1]["output_heads"] == 8


def test_other_samplers_are_refused():
    student = parallel()
    with pytest.raises(ConfigError, match="which heads each step combines"):
        student.sample(1, sampler="ddim")
    plain = Pipeline(replace_net(student), (2,))
    with pytest.raises(ConfigError, match="which heads"):
        plain.sample(1, sampler="parallel-decoding")


def replace_net(student):
    return fused(student, 1).denoiser


@pytest.mark.parametrize("reads", READS, ids=named)
@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_fused_is_unfused(reads, steps):
    """For every parameterisation, on a grid that starts where eps still says something of x0."""
    fine = uniform(8, start=0.6) if isinstance(reads, Eps) else FINE
    student = parallel(reads=reads, schedule=VPLinear(), fine=fine)
    made = fused(student, steps)
    torch.testing.assert_close(
        made.sample(4, seed=3), student.sample(4, steps=steps, seed=3), rtol=1e-5, atol=1e-5
    )
    assert made.step_counts == (steps,) and made.times == (student.grid(steps),)
    heads = recipe(made.denoiser.net)[1].get("output_heads", 0)
    assert heads == (0 if steps == 1 else steps)


@pytest.mark.parametrize("name", ["uvit", "unet", "dit", "mlp"])
def test_one_step_has_the_teachers_architecture(name, tmp_path):
    torch.manual_seed(0)
    net, shape = build(name, TINY[name]), (2,) if name == "mlp" else (3, 8, 8)
    student = fused(parallel(net, shape=shape), 1)
    assert recipe(student.denoiser.net) == recipe(net)
    assert student.sampler == "ddim" and student.fine_times == ()
    student.save(tmp_path / "s")
    assert torch.equal(Pipeline.load(tmp_path / "s").sample(2), student.sample(2))
    # The one step is the last head at t = 1: the others serve training only.
    wide = parallel(net, shape=shape)
    for key, value in student.denoiser.net.state_dict().items():
        old = wide.denoiser.net.state_dict()[key]
        assert torch.equal(value, old if old.shape == value.shape else old[-1])


def test_fusing_again_changes_nothing():
    made = fused(parallel(), 4)
    again = fused(made)
    assert torch.equal(again.sample(3), made.sample(3)) and again.times == made.times


def test_students_that_cannot_be_fused():
    student = parallel()
    with pytest.raises(ConfigError, match="sampler 'ddim'"):
        fused(fused(student, 1))
    with pytest.raises(ConfigError, match="1 to 4"):
        fused(student, 8)
    blind = replace(student, denoiser=type(student.denoiser)(student.denoiser.net, Cosine(), Eps()))
    with pytest.raises(ConfigError, match="predict eps"):
        fused(blind, 2)


def test_cfg_from_outside_and_images_as_a_start():
    torch.manual_seed(0)
    net = build("mlp", {"width": 16, "depth": 1, "num_classes": 3})
    student = parallel(net, class_names=("a", "b"), null=2)
    one = student.sample(4, steps=2, guidance_scale=2.0)
    torch.testing.assert_close(
        fused(student, 2).sample(4, guidance_scale=2.0), one, rtol=1e-5, atol=1e-5
    )
    assert not torch.allclose(one, student.sample(4, steps=2))
