"""Image-to-image and inpainting: the start of sampling, and the pixels that are kept to the bit."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from halfstep.diffusion.analytic import gaussian_teacher, Mixture, mixture_teacher
from halfstep.diffusion.denoiser import Denoiser
from halfstep.diffusion.prediction import V
from halfstep.diffusion.samplers import (
    ancestral,
    ddim,
    dpmpp_2m,
    heun,
    inpainting,
    ModelOutput,
    noised,
    sample,
    start,
    stochastic,
)
from halfstep.diffusion.schedules import BetaTable, Cosine, Karras, RectifiedFlow, VPLinear
from halfstep.diffusion.time_grids import uniform
from halfstep.errors import ConfigError
from halfstep.models import build
from halfstep.pipeline import Pipeline
from halfstep.pipeline.image_inputs import ImageStart
from halfstep.rng import sample_noise
from tests.support.denoisers import named, SCHEDULES, seeded, wobbly_teacher

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=named)
SHAPE = (3, 4, 6)
OWN = (1.0, 0.6, 0.25, 0.0)


def pipeline(schedule=None, **more):
    torch.manual_seed(3)
    config = {"img_size": [4, 6], "patch_size": 2, "in_chans": 3, "embed_dim": 12, "depth": 2,
              "num_heads": 2}  # fmt: skip
    net = build("uvit", config)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return Pipeline(Denoiser(net, schedule or Cosine(), V()).freeze(), SHAPE, **more)


@pytest.fixture
def images():
    return torch.rand(5, *SHAPE, generator=seeded(8)) * 2 - 1


@pytest.fixture
def fixed():
    return torch.rand(5, 1, 4, 6, generator=seeded(9)) < 0.4


# --- image-to-image -----------------------------------------------------------------------------------


@every_schedule
@pytest.mark.parametrize("t", [1.0, 0.4])
def test_noised_is_what_a_walk_begins_with(schedule, t):
    x0, z = torch.randn(2, 5, 3, generator=seeded())
    level = schedule.at(torch.tensor(t, dtype=torch.float64))
    actual = start(schedule, noised(schedule, x0, z, t), t)
    torch.testing.assert_close(actual, level.alpha * x0 + level.sigma * z, rtol=1e-5, atol=1e-6)
    assert actual.dtype == torch.float32


@pytest.mark.parametrize("schedule", [Cosine(), VPLinear(), RectifiedFlow(), Karras()], ids=named)
@pytest.mark.parametrize(
    "sampler", ["ddim", "heun", "dpmpp-2m", "ancestral", "stochastic", "diffusers:DDIMScheduler"]
)
def test_all_of_the_walk_is_sample(schedule, sampler, images):
    """Strength 1, to the bit for any image, for a teacher and for a student."""
    for made in (pipeline(schedule), pipeline(schedule, times=(OWN,), sampler="stochastic")):
        if made.times and sampler != "stochastic":
            made = replace(made, times=(OWN,), sampler="ddim")
        plain = made.sample(5, seed=4, steps=3, sampler=sampler)
        assert torch.equal(
            made.sample(5, seed=4, steps=3, sampler=sampler, images=images, strength=1.0), plain
        )
        assert torch.equal(made.sample(5, seed=4, steps=3, sampler=sampler, images=images), plain)


@pytest.mark.parametrize("schedule", [Cosine(), VPLinear(), RectifiedFlow(), Karras()], ids=named)
@pytest.mark.parametrize("batch, first", [(256, 0), (2, 0), (1, 3)])
def test_a_student_begins_at_a_time_of_its_grid(schedule, batch, first, images):
    made = pipeline(schedule, times=(OWN,))
    for k, strength in ((1, 0.6), (2, 0.25)):
        z = sample_noise(7, range(first, 5), SHAPE)
        x = noised(schedule, images[first:], z, strength)
        expected = sample(made.denoiser, x, OWN[k:])
        actual = made.sample(
            5 - first, seed=7, batch=batch, first=first, images=images[first:], strength=strength
        )
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


def test_strengths_off_a_students_grid_are_refused(images):
    made = pipeline(times=(OWN, uniform(3)))
    for strength in (0.5, 0.61, 0.1):
        with pytest.raises(ConfigError, match="write strength=") as refusal:
            made.sample(5, images=images, strength=strength)
        advice = str(refusal.value).rpartition("=")[2].split(" or ")
        assert len(advice) == 3
        for better in advice:
            made.sample(5, images=images, strength=float(better))
    assert str(refusal.value).endswith("strength=1 or 0.666667 or 0.333333")


def test_a_teacher_begins_anywhere(images):
    made = pipeline()
    z = sample_noise(0, range(5), SHAPE)
    for strength, times in (
        (0.5, (0.5, 0.25, 0.0)),
        (0.6, (0.6, 0.5, 0.25, 0.0)),
        (0.1, (0.1, 0.0)),
    ):
        expected = sample(made.denoiser, noised(Cosine(), images, z, strength), times)
        actual = made.sample(5, steps=4, images=images, strength=strength)
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)
    near = made.sample(5, steps=64, images=images, strength=0.001)
    assert (near - images).abs().max() < 0.05


@pytest.mark.parametrize("sampler", ["heun", "ancestral", "diffusers:DPMSolverMultistepScheduler"])
def test_other_samplers_begin_with_an_image_too(sampler, images):
    """With the exact denoiser of data at one point, sampling ends there from any start."""
    for schedule in (Cosine(), Karras()):
        denoiser = gaussian_teacher(schedule, 0.3, 0.0)
        denoiser.register_parameter(
            "one", nn.Parameter(torch.zeros(1))
        )  # a pipeline asks its device
        made = Pipeline(denoiser, (1,))
        actual = made.sample(2, sampler=sampler, steps=8, images=torch.ones(2, 1), strength=0.5)
        torch.testing.assert_close(actual, torch.full((2, 1), 0.3), rtol=0, atol=2e-2)


def test_stochastic_students_begin_within_their_grid(images):
    made = pipeline(times=(uniform(4),), sampler="stochastic")
    ids = range(5)

    def fresh(like, step):
        return sample_noise(0, ids, SHAPE, step=step)

    z, times = sample_noise(0, ids, SHAPE), uniform(4)[1:]
    x = noised(Cosine(), images, z, 0.75)
    expected = sample(made.denoiser, x, times, stochastic(times, Cosine(), fresh))
    actual = made.sample(5, images=images, strength=0.75)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


def test_sdedit_keeps_more_the_less_its_strength():
    data, teacher = Mixture(), mixture_teacher(Cosine())
    x0 = data.draw(500, seeded(), torch.float32)
    z = torch.randn(500, 2, generator=seeded(1))
    off = []
    for t in (0.9, 0.5, 0.1):
        times = tuple(t * s for s in uniform(32))
        off.append((sample(teacher, noised(Cosine(), x0, z, t), times) - x0).norm(dim=1).mean())
    assert off[0] > 1.2 * off[1] > 2.4 * off[2]


# --- inpainting ---------------------------------------------------------------------------------------


@every_schedule
@pytest.mark.parametrize("name", ["ddim", "heun", "dpmpp_2m", "ancestral", "stochastic"])
def test_known_numbers_stay_known_at_every_step(schedule, name):
    """Each x that the network is asked about has them at alpha x0 + sigma noise; the end has them."""
    times = uniform(6)

    def fresh(like, step):
        return torch.randn(like.shape, generator=seeded(step))

    step = {
        "ddim": ddim,
        "heun": heun,
        "dpmpp_2m": dpmpp_2m,
        "ancestral": ancestral(fresh),
        "stochastic": stochastic(times, schedule, fresh),
    }[name]
    x0, z = torch.randn(2, 5, *SHAPE, generator=seeded())
    fixed = torch.rand(5, 1, 4, 6, generator=seeded(2)) < 0.5
    teacher, x0s = wobbly_teacher(schedule, V()), []

    def watched(x, visits: list[ModelOutput], to, look):
        x0s.append((x, visits[-1].point.level))
        return inpainting(step, ~fixed, x0, z)(x, visits, to, look)

    x = sample(teacher, z, times, watched)
    assert torch.equal(x[fixed.expand_as(x)], x0[fixed.expand_as(x)])
    for at, level in x0s[1:]:
        expected = level.alpha * x0 + level.sigma * z
        assert torch.equal(at[fixed.expand_as(x)], expected[fixed.expand_as(x)])
    free = sample(teacher, z, times, step)
    assert not torch.equal(x[~fixed.expand_as(x)], free[~fixed.expand_as(x)])
    none = sample(teacher, z, times, inpainting(step, torch.ones_like(fixed), x0, z))
    assert torch.equal(none, free)


@pytest.mark.parametrize("schedule", [Cosine(), VPLinear(), RectifiedFlow(), Karras()], ids=named)
@pytest.mark.parametrize("strength", [1.0, 0.6])
@pytest.mark.parametrize("batch", [2, 256])
def test_a_pipeline_returns_known_pixels_to_the_bit(schedule, strength, batch, images, fixed):
    made = pipeline(schedule, times=(OWN,), clip=0.7)
    actual = made.sample(5, images=images, mask=~fixed, strength=strength, batch=batch)
    assert actual.shape == images.shape and actual.dtype == torch.float32
    where = fixed.expand_as(images)
    assert torch.equal(actual[where], images[where])
    free = made.sample(5, images=images, strength=strength, batch=batch)
    assert (actual - free)[~where].abs().max() > 1e-4


def test_where_an_inpainting_walk_begins(images, fixed):
    """At strength 1 from noise, but for what is known: alpha x0 + sigma noise from the first call on."""
    times = (0.7, 0.3, 0.0)  # the teacher of this student cannot be read at t = 1
    made, z = pipeline(times=(times,)), sample_noise(0, range(5), SHAPE)
    x = torch.where(fixed, noised(Cosine(), images, z, 0.7), z)
    expected = sample(made.denoiser, x, times, inpainting(ddim, ~fixed, images, z))
    actual = made.sample(5, images=images, mask=~fixed)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


def test_all_known_and_none_known(images):
    made = pipeline(times=(OWN,))
    every, none = (torch.full((1, 1, 1, 1), v) for v in (True, False))
    assert torch.equal(made.sample(5, images=images, mask=~every), images)
    assert torch.equal(made.sample(5, images=images, mask=~none), made.sample(5))


@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_a_mask_is_true_where_pixels_are_repainted(strength, images):
    """As in diffusers: all True is plain sampling, all False returns the images."""
    made, z = pipeline(times=(OWN,)), sample_noise(0, range(5), SHAPE)
    plain = made.sample(5, images=images, strength=strength)
    white, black = (torch.full((1, 1, 1, 1), v) for v in (True, False))
    assert torch.equal(made.sample(5, images=images, strength=strength, mask=white), plain)
    assert torch.equal(made.sample(5, images=images, strength=strength, mask=black), images)
    left = torch.zeros(1, 1, 4, 6, dtype=torch.bool)
    left[..., :3] = True
    actual = made.sample(5, images=images, strength=strength, mask=left)
    assert torch.equal(actual[..., 3:], images[..., 3:])
    assert (actual - images)[..., :3].abs().amin((0, 1, 2)).min() > 0
    step = inpainting(ddim, left, images, z)
    x = sample(made.denoiser, z, OWN, step)
    assert torch.equal(x[..., 3:], images[..., 3:]) and not torch.equal(x[..., :3], images[..., :3])


def test_inpainting_of_a_mixture_respects_what_is_known():
    """Two numbers a sample: the second, where the first is known, is drawn as the data has it."""
    data, teacher = (
        Mixture(means=((-0.6, 0.5), (0.6, -0.5)), stds=(0.1, 0.1), weights=(0.5, 0.5)),
        None,
    )
    teacher = mixture_teacher(Cosine(), data)
    x0, label = data.labelled(800, seeded(), torch.float32)
    z = torch.randn(800, 2, generator=seeded(1))
    fixed = torch.tensor([[True, False]])
    step = inpainting(
        ancestral(lambda like, n: torch.randn(like.shape, generator=seeded(n))), ~fixed, x0, z
    )
    x = sample(teacher, z, uniform(64), step)
    assert torch.equal(x[:, 0], x0[:, 0])
    side = torch.tensor([0.5, -0.5])[label]
    assert ((x[:, 1] - side).abs() < 0.4).float().mean() > 0.9


# --- refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more, words",
    [
        ({"strength": 0.5}, "give images"),
        ({"mask": torch.ones(5, 1, 4, 6, dtype=torch.bool)}, "no images"),
        ({"strength": 0.0}, r"strength lies in \(0, 1\], got 0"),
        ({"strength": 1.2}, r"strength lies in \(0, 1\], got 1.2"),
        ({"images": torch.zeros(4, *SHAPE)}, r"\[3, 4, 6\]: got shape \[4, 3, 4, 6\]"),
        (
            {"images": torch.zeros(5, 1, 4, 6)},
            r"5 samples need 5 images .*got shape \[5, 1, 4, 6\]",
        ),
        (
            {"images": torch.zeros(5, *SHAPE), "mask": torch.ones(5, 1, 4, 6)},
            r"expected bool \[5, 3, 4, 6\], dimensions of size 1 are broadcast, got float32 \[5, 1, 4, 6\]",
        ),
        (
            {"images": torch.zeros(5, *SHAPE), "mask": torch.ones(4, 6, dtype=torch.bool)},
            r"got bool \[4, 6\]",
        ),
        (
            {"images": torch.zeros(5, *SHAPE), "mask": torch.ones(5, 2, 4, 6, dtype=torch.bool)},
            r"got bool \[5, 2, 4, 6\]",
        ),
        *(
            (
                {"images": torch.zeros(5, *SHAPE), "mask": torch.ones(5, 1, 4, 6, dtype=dtype)},
                "bool",
            )
            for dtype in (torch.uint8, torch.int64, torch.float64)
        ),
    ],
)
def test_what_cannot_be_is_refused(more, words):
    with pytest.raises(ConfigError, match=words):
        pipeline().sample(5, **more)


def test_samplers_that_cannot(images, fixed):
    made = pipeline(VPLinear())
    for sampler in ("dpm-fast", "dpmpp-3s", "euler-maruyama"):
        with pytest.raises(ConfigError, match=f"'{sampler}'.*'ddim'"):
            made.sample(5, steps=4, sampler=sampler, images=images, strength=0.5)
    with pytest.raises(ConfigError, match="restored"):
        made.sample(5, steps=4, sampler="diffusers:DDIMScheduler", images=images, mask=~fixed)


# --- latents ------------------------------------------------------------------------------------------


class Halves:
    """A codec whose latents are means of 2 x 2 pixels, and whose images are never quite right."""

    scale, factor, channels = 1.5, 2, 3

    def moments(self, images):
        mean = nn.functional.avg_pool2d(images, 2)
        return torch.cat([mean, torch.full_like(mean, 2.0)], 1)

    def decode(self, latents):
        return 0.99 * (latents / self.scale).repeat_interleave(2, 2).repeat_interleave(2, 3)


def test_a_model_of_latents(images):
    made = pipeline(times=(OWN,), codec=Halves())
    pixels = torch.rand(5, 3, 8, 12, generator=seeded(5)) * 2 - 1
    latents = 1.5 * nn.functional.avg_pool2d(pixels, 2)
    z = sample_noise(0, range(5), SHAPE)
    expected = sample(made.denoiser, noised(Cosine(), latents, z, 0.6), OWN[1:])
    actual = made.sample(5, images=pixels, strength=0.6, latents=True)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)

    fixed = torch.zeros(5, 1, 8, 12, dtype=torch.bool)
    fixed[..., :5] = True  # two latents wide, and half of a third
    actual = made.sample(5, images=pixels, mask=~fixed)
    where = fixed.expand_as(pixels)
    assert torch.equal(actual[where], pixels[where])
    inner = made.sample(5, images=pixels, mask=~fixed, latents=True)
    torch.testing.assert_close(inner[..., :2], latents[..., :2], rtol=0, atol=1e-6)
    assert (inner - latents)[..., 2:].abs().amin((0, 1, 2)).min() > 0
    assert torch.equal(actual[~where], Halves().decode(inner)[~where])
    some = fixed.repeat(1, 3, 1, 1)
    some[:, 1, :, :2] = False  # one channel of the first column of latents
    inner = made.sample(5, images=pixels, mask=~some, latents=True)
    assert (inner - latents)[..., 0].abs().min() > 0
    torch.testing.assert_close(inner[..., 1], latents[..., 1], rtol=0, atol=1e-6)
    with pytest.raises(ConfigError, match=r"\[3, 8, 12\]: got shape"):
        made.sample(5, images=images)


class Leaky:
    """A codec every latent of which sees all of its image: brightness is taken off, neighbours mixed in."""

    scale, factor, channels = 0.7, 2, 3

    def moments(self, images):
        x0s = nn.functional.avg_pool2d(images, 5, stride=1, padding=2)
        mean = nn.functional.avg_pool2d(x0s - images.mean((1, 2, 3), keepdim=True), 2)
        return torch.cat([mean, torch.zeros_like(mean)], 1)

    def decode(self, latents):
        return (latents / self.scale).repeat_interleave(2, 2).repeat_interleave(2, 3)


def masks():
    left, one, dots, red = torch.zeros(4, 1, 3, 8, 12, dtype=torch.bool).unbind(0)
    left[..., :6], one[..., 2:4, 4:6], dots[..., ::2, ::3], red[:, 0] = True, True, True, True
    return {"left": left, "one latent": one, "dots": dots, "one channel": red, "none": left & one}


@pytest.mark.parametrize("name", masks())
@pytest.mark.parametrize("codec", [None, Leaky()], ids=["pixels", "latents"])
def test_hidden_pixels_change_nothing(name, codec):
    """From noise alone: hidden pixels do not change the sample, to the bit."""
    made, fixed = pipeline(times=(OWN,), codec=codec), masks()[name]
    if codec is None:
        fixed = fixed[..., :4, 3:9]
    hidden = torch.rand(5, *fixed.shape[1:], generator=seeded(6)) * 2 - 1
    others = [torch.rand(hidden.shape, generator=seeded(k)) * 2 - 1 for k in (7, 8)]
    others += [torch.full_like(hidden, v) for v in (-1.0, 0.0, 1.0)]
    both = {}
    for latents in (False, True):
        results = [
            made.sample(5, images=torch.where(fixed, hidden, x), mask=~fixed, latents=latents)
            for x in others
        ]
        assert all(torch.equal(results[0], one) for one in results[1:])
        both[latents] = results[0]
    where = fixed.expand_as(hidden)
    assert torch.equal(both[False][where], hidden[where])
    # Below strength 1 sampling starts from them.
    a, b = (
        made.sample(5, images=torch.where(fixed, hidden, x), mask=~fixed, strength=0.6)
        for x in others[:2]
    )
    assert not torch.allclose(a, b)


def test_what_is_kept_still_looks_like_the_image():
    """A latent far from what is hidden is the image's own; near it, it is encoded beside gray."""
    pixels = torch.rand(5, 3, 8, 12, generator=seeded(5)) * 2 - 1
    fixed = torch.ones(1, 1, 8, 12, dtype=torch.bool)
    fixed[..., 8:] = False

    class Blurred(Leaky):
        def moments(self, images):
            mean = nn.functional.avg_pool2d(images, 4, stride=2, padding=1)
            return torch.cat([mean, torch.zeros_like(mean)], 1)

    codec = Blurred()
    made = pipeline(times=(OWN,), codec=codec)
    actual = made.sample(5, images=pixels, mask=~fixed, latents=True)
    whole = 0.7 * codec.moments(pixels)[:, :3]
    gray = 0.7 * codec.moments(torch.where(fixed, pixels, 0.0))[:, :3]
    assert torch.equal(actual[..., :3], whole[..., :3])
    assert torch.equal(actual[..., 3], gray[..., 3]) and not torch.equal(
        gray[..., 3], whole[..., 3]
    )
    every = torch.ones(1, 1, 1, 1, dtype=torch.bool)
    assert torch.equal(made.sample(5, images=pixels, mask=~every, latents=True), whole)


def test_8_bits_come_back_to_the_bit(fixed):
    made = pipeline(times=(OWN,))
    pixels = torch.randint(0, 256, (5, *SHAPE), dtype=torch.uint8, generator=seeded(3))
    actual = made.sample(5, images=pixels, mask=~fixed)
    where = fixed.expand_as(pixels)
    assert torch.equal(((actual + 1) * 127.5).round()[where], pixels[where].float())


def test_a_table(images, fixed):
    """A teacher on a table begins at a level of it."""
    made = pipeline(BetaTable())
    actual = made.sample(5, steps=10, images=images, mask=~fixed, strength=0.55)
    where = fixed.expand_as(images)
    assert torch.equal(actual[where], images[where]) and bool(actual.isfinite().all())


@pytest.mark.parametrize(
    "name, count", [("left", 12), ("one latent", 1), ("dots", 0), ("one channel", 0), ("none", 1)]
)
def test_a_latent_is_known_where_all_its_pixels_are(name, count):
    fixed = masks()[name]
    mask = ImageStart(torch.zeros(fixed.shape), ~fixed).of_model(Leaky()).mask
    assert mask is not None and int((~mask)[0, 0].sum()) == count
