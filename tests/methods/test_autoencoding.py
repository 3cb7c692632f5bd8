"""Training a codec: the loss by hand and per sample, the divergence, the scale, the error in decibels."""

from math import exp, log

import pytest
import torch
from torch.distributions import kl_divergence, Normal

from halfstep.batch import Batch
from halfstep.errors import ConfigError, DataError
from halfstep.methods.autoencoding import Autoencode, Autoencoding, divergence, psnr, unit_scale
from halfstep.models.autoencoder.kl import KLCodec
from halfstep.rng import Draw
from tests.support.denoisers import seeded

CONFIG = {
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (4, 8),
    "latent_channels": 3,
    "norm_num_groups": 2,
    "mid_block_add_attention": False,
}


def codec():
    torch.manual_seed(3)
    return KLCodec.fresh(CONFIG, 0.3).double()


def batch(n=5):
    x = torch.rand(n, 1, 4, 6, generator=seeded(), dtype=torch.float64) * 2 - 1
    return Batch(x)


@pytest.mark.parametrize("error", ["absolute", "squared"])
@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_the_loss_is_each_images_own(error, weight):
    """Sums over an image and its latent, by their number of pixels; the scale has no part in it."""
    net, images = codec(), batch()
    [stage] = Autoencoding(error=error, kl_weight=weight).stages(net)
    loss = stage.objective(net, images, Draw.all(seeded(7), 5))
    noise = torch.randn(5, 3, 2, 3, generator=seeded(7), dtype=torch.float64)
    for k in range(5):
        mean, log_variance = net.model.encode(images.x0[k : k + 1]).latent_dist.parameters.chunk(
            2, 1
        )
        deviation = (log_variance / 2).exp()
        off = images.x0[k] - net.model.decode(mean + deviation * noise[k]).sample[0]
        lost = off.abs().sum() if error == "absolute" else (off**2).sum()
        apart = kl_divergence(Normal(mean, deviation), Normal(0.0, 1.0)).sum()
        torch.testing.assert_close(loss[k], (lost + weight * apart) / 24, rtol=1e-9, atol=0)


def test_slices_see_what_the_whole_sees():
    net, images = codec(), batch()
    [stage] = Autoencoding().stages(net)
    whole = stage.objective(net, images, Draw.all(seeded(7), 5))
    parts = [
        stage.objective(net, Batch(images.x0[rows]), Draw(seeded(7), 5, rows))
        for rows in (slice(0, 2), slice(2, 5))
    ]
    torch.testing.assert_close(torch.cat(parts), whole)


def test_one_stage():
    net = codec()
    [stage] = Autoencoding(updates=7).stages(net)
    assert (stage.name, stage.student, stage.updates, stage.times) == ("codec", net, 7, ())
    assert stage.objective == Autoencode(3, 2, "absolute", 1e-6)
    assert stage.objective.forwards == 3


@pytest.mark.parametrize("weight, falls", [(0.0, "error"), (10.0, "divergence")])
def test_training_takes_down_what_weighs(weight, falls):
    net, images = codec().float(), Batch(batch().x0.float())
    [stage] = Autoencoding(error="squared", kl_weight=weight).stages(net)
    [judge] = Autoencoding(error="squared", kl_weight=0.0).stages(net)
    optimiser, losses = torch.optim.AdamW(net.parameters(), 1e-2), []
    for k in range(41):
        if k in (0, 40):
            error = judge.objective(net, images, Draw.all(seeded(99), 5)).mean().item()
            apart = divergence(net.moments(images.x0)).mean().item()
            losses.append({"error": error, "divergence": apart})
        stage.objective(net, images, Draw.all(seeded(k), 5)).mean().backward()
        optimiser.step()
        optimiser.zero_grad()
    assert losses[1][falls] < 0.7 * losses[0][falls]
    assert (losses[1]["divergence"] < losses[0]["divergence"]) == (falls == "divergence")


def test_the_divergence_is_that_of_normals():
    mean = torch.randn(4, 3, 2, 5, generator=seeded(), dtype=torch.float64)
    log_variance = 3 * torch.randn(4, 3, 2, 5, generator=seeded(1), dtype=torch.float64)
    by_hand = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0)).sum((1, 2, 3))
    torch.testing.assert_close(divergence(torch.cat([mean, log_variance], 1)), by_hand)
    assert divergence(torch.zeros(2, 6, 1, 4)).tolist() == [0, 0]


@pytest.mark.parametrize("log_variance, counted", [(-99.0, -30), (99.0, 20), (-29.5, -29.5)])
def test_the_divergence_is_clamped_as_drawing_is(log_variance, counted):
    moments = torch.tensor([0.5, log_variance], dtype=torch.float64).reshape(1, 2, 1, 1)
    by_hand = (0.25 + exp(counted) - 1 - counted) / 2
    assert float(divergence(moments)) == pytest.approx(by_hand, rel=1e-12)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"updates": -1}, "updates"),
        ({"kl_weight": -1e-6}, "kl_weight"),
    ],
)
def test_what_cannot_be_is_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        Autoencoding(**options)


def test_the_scale_brings_latents_to_unit_variance():
    """Over all components together, about the mean of all."""
    latents = 2.5 * torch.randn(7, 3, 2, 5, generator=seeded(), dtype=torch.float64) + 4
    scale = unit_scale(latents)
    assert float((latents * scale).var(correction=0)) == pytest.approx(1, rel=1e-12)
    assert unit_scale(torch.tensor([[1.0], [3.0]])) == 1


@pytest.mark.parametrize("value", [0.5, float("nan"), float("inf")])
def test_latents_without_a_scale_are_refused(value):
    with pytest.raises(DataError, match="no scale"):
        unit_scale(torch.full((3, 2, 1, 2), value))


def test_decibels():
    """A hundredth of the peak's square is 20 dB; each image has its own."""
    x = torch.zeros(3, 1, 2, 5)
    y = torch.tensor([0.2, -0.02, 0.0]).reshape(3, 1, 1, 1).expand_as(x)
    actual = psnr(x, y)
    assert actual.dtype == torch.float64 and actual[2] == float("inf")
    torch.testing.assert_close(
        actual[:2], torch.tensor([20.0, 40.0], dtype=torch.float64), rtol=1e-6, atol=0
    )
    mixed = torch.tensor([2.0, 0.0]).expand(1, 1, 1, 2)
    assert float(psnr(mixed, 0 * mixed)) == pytest.approx(10 * log(2) / log(10))
