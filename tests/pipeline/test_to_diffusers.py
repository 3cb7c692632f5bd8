"""Schedulers and networks of a student for diffusers: the same walk, and the same outputs."""

from dataclasses import replace

import pytest
import torch

from halfstep import build, Cond, Denoiser, NetTime, Pipeline
from halfstep.diffusion.prediction import Eps, V, Velocity, X0, X0AndEps
from halfstep.diffusion.samplers.scheduler_setup import quiet_numpy, scheduler_class
from halfstep.diffusion.schedules import BetaTable, Cosine, Karras, RectifiedFlow, VPLinear
from halfstep.diffusion.time_grids import trailing, uniform
from halfstep.errors import ConfigError
from halfstep.models.with_guidance import with_guidance
from halfstep.pipeline.to_diffusers.flow import flow_config, own_shift, sigmas_of
from halfstep.pipeline.to_diffusers.network import network_config, network_weights
from halfstep.pipeline.to_diffusers.scheduler import DDIM, DPM, student_scheduler
from halfstep.pipeline.to_diffusers.target import target_of
from tests.support.refusals import refused
from tests.support.texts import lively

STEPS = (1, 2, 4, 8, 16, 64)
UNET = {
    "sample_size": 8,
    "in_channels": 3,
    "block_out_channels": [4],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"],
    "norm_num_groups": 2,
    "attention_head_dim": 4,
}


def unet(**options):
    torch.manual_seed(0)
    return lively(build("unet", {**UNET, **options})).eval()


def pixels(schedule, times, reads=None, *, time=None, net=None, **options):
    """A student of pixels with halfstep's own U-Net."""
    levels = getattr(schedule, "levels", None)
    time = time or (NetTime("t", levels, -1.0) if levels else NetTime())
    denoiser = Denoiser(net or unet(), schedule, reads or V(), time=time)
    return Pipeline(denoiser.freeze(), (3, 8, 8), times=(times,), **options)


def table(levels=1000, **options):
    return BetaTable("scaled_linear", levels, 0.00085, 0.012, **options)


def walked(made, pipeline, steps):
    """The samples of the scheduler with the pipeline's network, and the pipeline's own."""
    noise = torch.randn(2, *pipeline.shape, generator=torch.Generator().manual_seed(3))
    with quiet_numpy():
        scheduler = scheduler_class(made.name).from_config(made.config)
        scheduler.set_timesteps(steps)
    x, net = noise, pipeline.denoiser.net.model
    net.load_state_dict(network_weights(pipeline.denoiser.net, scale=None, shift=made.shift))
    with torch.no_grad():
        for n in scheduler.timesteps:
            x = scheduler.step(net(x, n).sample, n, x, **made.call)[0]
    return x


def same(made, pipeline, steps, near=1e-5):
    noise = torch.randn(2, *pipeline.shape, generator=torch.Generator().manual_seed(3))
    ours = pipeline.sample(2, noise=noise, latents=True)
    return (walked(made, pipeline, steps) - ours).abs().max() < near * ours.abs().max()


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("levels", [1000, 1024])
@pytest.mark.parametrize("steps", [*STEPS[:-1], pytest.param(64, marks=pytest.mark.slow)])
def test_a_table_is_walked_exactly(steps, levels, zero_snr):
    """By DDIM where the steps divide the table, else by DPM-Solver++ of order 1."""
    student = pixels(table(levels, zero_snr=zero_snr), trailing(steps, levels=levels))
    made = student_scheduler(student, student.grid(), uniform_sigmas=False, corrects_eps=True)
    assert made.name == (DPM if levels % steps else DDIM) and made.shift == 0
    assert same(made, student, steps)


@pytest.mark.parametrize("reads", [V(), X0(), Eps()], ids=["v", "x0", "eps"])
@pytest.mark.parametrize("steps", [4, 16])
def test_each_prediction_type_is_walked(reads, steps):
    student = pixels(table(), trailing(steps), reads)
    made = student_scheduler(student, student.grid(), uniform_sigmas=False, corrects_eps=True)
    assert same(made, student, steps)


@pytest.mark.parametrize("schedule", [Cosine(), VPLinear()], ids=["cosine", "vp-linear"])
@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_a_continuous_schedule_is_a_table_of_trained_betas(schedule, steps):
    """And halfstep's times of 1000 t are one above diffusers' timesteps: the network's first layer turns."""
    student = pixels(schedule, uniform(steps))
    made = student_scheduler(student, student.grid(), uniform_sigmas=False, corrects_eps=True)
    assert len(made.config["trained_betas"]) == 1000 and made.shift == 1
    assert same(made, student, steps, near=3e-5)


@pytest.mark.parametrize("corrects", [True, False])
@pytest.mark.parametrize("clipping", ["x0", "x0-and-eps"])
@pytest.mark.parametrize("steps", [1, 4, 16])
def test_a_clip_is_what_the_student_has(clipping, steps, corrects):
    """In DDIM with the call's argument, or without it; in DPM-Solver++ as a threshold that is always 1."""
    student = pixels(table(), trailing(steps), clip=1.0, clipping=clipping)
    arguments = {"uniform_sigmas": False, "corrects_eps": corrects}
    if clipping == "x0" and steps == 16:
        with refused(ConfigError, "clips images at 1", "clipping='x0'", "write steps that divide"):
            student_scheduler(student, student.grid(), **arguments)
        return
    made = student_scheduler(student, student.grid(), **arguments)
    assert same(made, student, steps)
    unclipped = replace(student, clip=None, clipping="x0-and-eps")
    assert not same(made, unclipped, steps, near=0.01)


@pytest.mark.parametrize("shift", [1.0, 3.0, 0.5])
@pytest.mark.parametrize("levels", [1000, 1024])
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("uniform_sigmas", [True, False])
def test_equal_steps_of_a_flow_are_in_the_config(uniform_sigmas, steps, levels, shift):
    """Whether the pipeline passes its sigmas, or leaves them to the scheduler's own grid."""
    config = flow_config(shift, steps, levels, uniform_sigmas=uniform_sigmas)
    u = 1 - torch.arange(steps + 1, dtype=torch.float64) / steps
    wanted = shift * u / (1 + (shift - 1) * u)
    torch.testing.assert_close(
        sigmas_of(config, steps, uniform_sigmas=uniform_sigmas), wanted, rtol=0, atol=1e-6
    )


def test_a_straight_flow_keeps_its_shift_and_ends_at_one_step():
    assert own_shift(1.0, 4, 1000) == 1 and 0 < own_shift(0.5, 4, 1000) < 1
    config = flow_config(1.0, 4, 1000, uniform_sigmas=False)
    assert config == {"num_train_timesteps": 1000, "shift": 1.0, "shift_terminal": 0.25}
    assert "shift_terminal" not in flow_config(3.0, 1, 1000, uniform_sigmas=False)
    with refused(ConfigError, "no scheduler config of 4 levels", "fewer steps"):
        own_shift(1000.0, 300, 4)


def test_a_flow_of_pixels_is_walked():
    student = pixels(RectifiedFlow(), uniform(4), Velocity(), time=NetTime("sigma", 1000.0))
    made = student_scheduler(student, student.grid(), uniform_sigmas=False, corrects_eps=True)
    assert same(made, student, 4)


REFUSED = {
    "a grid of its own": (table(), (1.0, 0.3, 0.0), None, {}, "the trailing levels"),
    "times between levels": (Cosine(), uniform(16), None, {}, "the trailing levels"),
    "another time": (Cosine(), uniform(4), NetTime("logsnr", 1.0), {}, "the number of its level"),
    "no whole number": (Cosine(), uniform(4), NetTime("t", 2.5), {}, "the number of its level"),
    "another table": (table(), trailing(4), NetTime("t", 500.0), {}, "on a table of 1000"),
    "no signal kept": (Karras(), uniform(4), None, {}, "no scheduler for a student"),
    "a velocity of a table": (table(), trailing(4), None, {"reads": Velocity()}, "predicts Velocity"),
    "two outputs": (table(), trailing(4), None, {"reads": X0AndEps()}, "predicts X0AndEps"),
    "another bound": (table(), trailing(16), None, {"clip": 2.0}, "clip=2"),
    "a flow that reads t": (RectifiedFlow(3.0), uniform(4), None, {"reads": Velocity()}, "time_of sigma"),
    "a flow of v": (RectifiedFlow(), uniform(4), None, {}, "read a velocity"),
    "a clipped flow": (RectifiedFlow(), uniform(4), None, {"reads": Velocity(), "clip": 1.0}, "not clip"),
    "unequal times": (RectifiedFlow(), (1.0, 0.9, 0.0), None, {"reads": Velocity()}, "equal steps"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_scheduler_samples_is_one_sentence(case):
    schedule, times, time, options, words = REFUSED[case]
    outputs = 2 if isinstance(options.get("reads"), X0AndEps) else 1
    student = pixels(schedule, times, time=time, net=unet(outputs=outputs), **options)
    with refused(ConfigError, words):
        target_of(student, steps=None, scale=None)


@pytest.mark.parametrize("shift", [1.0, -0.5])
@pytest.mark.parametrize("flipped", [True, False])
def test_a_shifted_time_turns_the_features(shift, flipped):
    """The network with these weights at n is the old one at n + shift."""
    net = unet(flip_sin_to_cos=flipped, freq_shift=int(flipped))
    x, n = torch.randn(2, 3, 8, 8), torch.tensor([7.0, 400.0])
    expected = net(x, n + shift)
    net.model.load_state_dict(network_weights(net, scale=None, shift=shift))
    torch.testing.assert_close(net(x, n), expected, atol=1e-5, rtol=1e-5)


def test_a_time_that_cannot_be_shifted_is_one_sentence():
    net = unet(time_embedding_type="fourier")
    with refused(ConfigError, "cannot be moved", "time_offset=-1"):
        network_weights(net, scale=None, shift=1.0)


@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_one_guidance_scale_is_a_bias(kind):
    net, x, t = unet(num_classes=4), torch.randn(2, 3, 8, 8), torch.tensor([3.0, 500.0])
    if kind == "dit":
        config = {
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "in_channels": 3,
            "num_layers": 2,
            "sample_size": 8,
            "patch_size": 2,
            "norm_num_groups": 4,
        }
        net = lively(build("dit", {**config, "num_classes": 4})).eval()
    guided = lively(with_guidance(net, width=8)).eval()
    label = torch.tensor([1, 2])
    with torch.no_grad():
        expected = guided(x, t, Cond(label, guidance_scale=torch.tensor([2.5, 2.5])))
    net.model.load_state_dict(network_weights(guided, scale=2.5, shift=0.0))
    near = 1e-5 * expected.abs().max().item()
    torch.testing.assert_close(net(x, t, Cond(label)), expected, atol=near, rtol=0)
    assert (
        net(x, t, Cond(label)) - guided(x, t, Cond(label, guidance_scale=torch.ones(2)))
    ).abs().max() > 1e-3


def test_a_config_has_the_size_of_the_samples_and_no_place():
    net = unet(sample_size=32)
    net.model.register_to_config(_name_or_path="someone/unet")
    config = network_config(net, (3, 8, 16))
    assert config["sample_size"] == [8, 16] and config["_class_name"] == "UNet2DModel"
    assert "someone" not in str(config)
    assert network_config(net, (3, 8, 8))["sample_size"] == 8


def test_a_shifted_time_leaves_the_features_of_the_scale():
    """They are added to the turned features, so that they turn back."""
    torch.manual_seed(0)
    config = {**UNET, "cross_attention_dim": 8, "guidance_embed_dim": 8}
    net = lively(build("unet-condition", config)).eval()
    cond = Cond(None, torch.randn(2, 3, 8), guidance_scale=torch.tensor([1.5, 4.0]))
    x, n = torch.randn(2, 3, 8, 8), torch.tensor([7.0, 400.0])
    with torch.no_grad():
        expected = net(x, n + 1, cond)
        net.model.load_state_dict(network_weights(net, scale=None, shift=1.0))
        torch.testing.assert_close(net(x, n, cond), expected, atol=1e-5, rtol=1e-5)
