"""A network that is told where its steps end, on a grid and through a pipeline."""

import pytest
import torch
from torch import nn

from halfstep.batch import Cond
from halfstep.diffusion.analytic import gaussian_teacher
from halfstep.diffusion.denoiser import Denoiser, NetTime
from halfstep.diffusion.prediction import V
from halfstep.diffusion.samplers import sample, TowardNext
from halfstep.diffusion.schedules import Cosine
from halfstep.diffusion.time_grids import uniform
from halfstep.errors import ConfigError
from halfstep.models.with_end_time import with_end_time
from halfstep.pipeline import Pipeline
from halfstep.pipeline.torch_export import export_program, run_program
from tests.support.pipelines import pipeline as made_of

FINE = uniform(8)


class Asked(nn.Module):
    """The exact network of a Gaussian, with the times and ends that it was asked."""

    reads = ("t_end",)

    def __init__(self):
        super().__init__()
        self.exact, self.calls = gaussian_teacher(Cosine(), 0.3, 0.5).net, []
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x, t, cond=None):
        self.calls += [(float(t[0]), float(cond.t_end[0]))]
        assert bool((cond.t_end == cond.t_end[0]).all())
        return self.exact(x, t, None)


def student():
    denoiser = Denoiser(Asked(), Cosine(), V(), time=NetTime(scale=1.0))
    return Pipeline(
        denoiser, (4,), times=(FINE[::4], FINE[::8]), fine_times=FINE, sampler="flow-map", steps=1
    )


def test_each_call_is_told_the_next_time_of_the_grid():
    made = student()
    made.sample(3, steps=2, batch=2)
    assert made.denoiser.net.calls == [(1.0, 0.5), (0.5, 0.0)] * 2
    made.denoiser.net.calls.clear()
    made.sample(1, steps=3)
    assert made.denoiser.net.calls == [(1.0, 0.5), (0.5, 0.25), (0.25, 0.0)]


def test_its_steps_are_those_of_ddim():
    made, noise = student(), torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    plain = gaussian_teacher(Cosine(), 0.3, 0.5)
    told = sample(TowardNext(made.denoiser, FINE), noise, FINE)
    assert torch.allclose(told, sample(plain, noise, FINE), atol=1e-6)
    assert torch.allclose(made.sample(3, steps=8, noise=noise), told, atol=1e-6)


def test_a_time_off_the_grid_is_refused():
    told = TowardNext(student().denoiser, FINE)
    assert told.ends(torch.tensor([1.0, 0.125], dtype=torch.float64)).tolist() == [0.875, 0.0]
    for t in (0.3, 0.0):
        with pytest.raises(ConfigError, match="no step of this grid begins"):
            told(torch.zeros(1, 4), torch.tensor([t]), Cond())


def test_another_sampler_is_refused_and_so_is_this_one_for_others():
    for other in ("ddim", "heun", "stochastic", "diffusers:DDIMScheduler"):
        with pytest.raises(ConfigError):
            student().sample(1, sampler=other)
    with pytest.raises(ConfigError, match="not told"):
        made_of("mlp").sample(1, sampler="flow-map")
    with pytest.raises(ConfigError, match="not told"):
        made_of("mlp", times=(FINE,)).sample(1, sampler="flow-map")


def test_an_image_is_edited_along_the_rest_of_the_grid():
    made = made_of("uvit", times=(FINE,), fine_times=FINE, sampler="flow-map")
    made.denoiser.net = with_end_time(made.denoiser.net, width=8)
    images = torch.zeros(2, *made.shape)
    assert made.sample(2, steps=8, images=images, strength=0.5).shape == images.shape


def test_a_guided_student_is_told_in_both_branches():
    made = made_of(
        "uvit", class_names=("a", "b"), null=2, times=(FINE,), fine_times=FINE, sampler="flow-map"
    )
    made.denoiser.net = with_end_time(made.denoiser.net, width=8)
    assert made.sample(2, steps=8, guidance_scale=2.0).shape == (2, *made.shape)


def test_a_program_holds_the_ends():
    made = made_of("uvit", times=(FINE[::4],), fine_times=FINE, sampler="flow-map", steps=2)
    net = with_end_time(made.denoiser.net, width=8)
    with torch.no_grad():
        net.model.t_end_embed.leave.weight.normal_()
    made.denoiser.net = net
    for steps in (2, 3):
        program = export_program(made, steps)
        noise = torch.randn(2, *made.shape, generator=torch.Generator().manual_seed(0))
        drawn = made.sample(2, steps=steps, noise=noise)
        assert program.steps == steps
        assert torch.allclose(run_program(program, noise, ()), drawn, atol=1e-5)
