"""Weightings: the losses of the official code on a fixed toy problem, and the identities between them."""

import pytest
import torch
from torch import nn

from halfstep.diffusion.denoiser import Denoiser, level_of, NetTime
from halfstep.diffusion.loss_weighting import (
    constant,
    min_snr,
    snr,
    snr_plus_one,
    truncated_snr,
    vanishes,
    WEIGHTINGS,
)
from halfstep.diffusion.prediction import Prediction, V, X0
from halfstep.diffusion.schedules import Cosine
from halfstep.methods import two_step_target
from halfstep.methods.base import errors
from tests.support.denoisers import seeded

pytestmark = pytest.mark.usefixtures("float64")

# fmt: off
NOISE = [
    -1.400884102827668, 1.4321449977776874, 0.6248106961344603, 0.20048727190797802,
    0.24714761103775162, 0.5244771012032242, 0.8618686443238908, 1.2237145475521969,
    -1.4305551025073986, 1.1400057995778066, -0.7499600589847507, 0.4027208688271241,
    -0.5468369724031622, 0.41143474422334114, 0.3301723499658368, -0.0954418018036441,
]
# fmt: on
X_CONSTANT = [0.004203157947, 0.006507030844, 0.000102308729, 0.003290101933]
X_SNR = [7.212405009e-04, 1.34119902e-11, 5.962224065e-04, 6.78140552e-12]
X_TRUNCATED = [0.004203157947, 0.006507030844, 0.000596222406, 0.003290101933]
X_PLUS_ONE = [0.004924398448, 0.006507030857, 0.000698531135, 0.003290101940]
V_TRUNCATED = [0.002126676906, 0.001091996451, 0.000199360657, 0.000124406921]


class Toy(nn.Module):
    """gain * tanh(slope z) + push * sin(log-SNR)."""

    def __init__(self, gain, slope, push):
        super().__init__()
        self.gain, self.slope, self.push = gain, slope, push

    def forward(self, x, logsnr, cond=None):
        wave = self.push * logsnr.sin().reshape(-1, *[1] * (x.ndim - 1))
        return self.gain * (self.slope * x).tanh() + wave


def toy_errors(reads, dtype=torch.float64):
    """The two errors of the toy student against the toy teacher's two steps; t = (i + 1) / 4."""
    time = NetTime(of="logsnr", scale=1.0)
    teacher = Denoiser(Toy(0.9, 0.8, 0.05), Cosine(), reads, time=time)
    student = Denoiser(Toy(0.85, 0.7, 0.02), Cosine(), reads, time=time)
    x0 = torch.linspace(-1, 1, 16, dtype=torch.float64).reshape(4, 2, 2, 1).to(dtype)
    eps = torch.tensor(NOISE, dtype=torch.float64).reshape(4, 2, 2, 1).to(dtype)
    t = (torch.tensor([2, 3, 0, 3]) + 1).double() / 4
    x_t = level_of(Cosine(), t, x0).mix(x0, eps)
    target = two_step_target(teacher, x_t, t, t - 1 / 8, t - 1 / 4)
    return errors(student(x_t, t), target)


@pytest.mark.parametrize(
    "reads, weighting, losses",
    [
        (X0(), constant, X_CONSTANT),
        (X0(), snr, X_SNR),
        (X0(), truncated_snr, X_TRUNCATED),
        (X0(), snr_plus_one, X_PLUS_ONE),
        (V(), truncated_snr, V_TRUNCATED),
    ],
    ids=["x-constant", "x-snr", "x-truncated", "x-plus-one", "v-truncated"],
)
def test_losses_of_the_official_code(reads, weighting, losses):
    """distillation-checks.md 27 to 31, one loss a sample."""
    actual = weighting(*toy_errors(reads))
    # At t = 1 the eps error is 4.5e-5 of the x0 error: the official difference form rounds there.
    torch.testing.assert_close(actual, torch.tensor(losses), rtol=1e-6, atol=0)


def test_losses_in_float32():
    actual = truncated_snr(*toy_errors(X0(), torch.float32))
    torch.testing.assert_close(actual.double(), torch.tensor(X_TRUNCATED), rtol=1e-4, atol=0)


def test_identities():
    """distillation-checks.md 34, at every sample's own SNR."""
    t, shape = torch.linspace(0.02, 1, 5), (5, 3, 4, 6)
    level = level_of(Cosine(), t, torch.empty(shape))
    x_t, x0, other = torch.randn(3, *shape, generator=seeded())
    guess, target = (Prediction.from_x0(x, x_t, level) for x in (x0, other))
    pair, ratio = errors(guess, target), Cosine().at(t).logsnr.exp()
    one = constant(*pair)
    torch.testing.assert_close(one, (x0 - other).square().mean((1, 2, 3)))
    torch.testing.assert_close(snr(*pair), ratio * one, rtol=1e-7, atol=0)
    torch.testing.assert_close(snr_plus_one(*pair), (1 + ratio) * one, rtol=1e-7, atol=0)
    torch.testing.assert_close(truncated_snr(*pair), ratio.clamp(min=1) * one, rtol=1e-7, atol=0)
    torch.testing.assert_close(min_snr(*pair), ratio.clamp(max=5) * one, rtol=1e-7, atol=0)
    two = min_snr(*pair, gamma=2.0)
    torch.testing.assert_close(two, ratio.clamp(max=2) * one, rtol=1e-7, atol=0)
    v_err = (V().encode(guess, level) - V().encode(target, level)).square().mean((1, 2, 3))
    torch.testing.assert_close(snr_plus_one(*pair), v_err, rtol=1e-7, atol=0)


def test_truncation_is_per_sample_not_per_pixel():
    x_err, eps_err = torch.tensor([1.0, 4.0]), torch.tensor([3.0, 2.0])
    assert truncated_snr(x_err, eps_err).tolist() == [3.0, 4.0]
    assert min_snr(x_err, eps_err).tolist() == [3.0, 2.0]
    assert min_snr(x_err, eps_err, gamma=1.0).tolist() == [1.0, 2.0]


def test_nothing_divides():
    """At the ends one of the errors is 0 and the loss is finite, with a finite gradient."""
    for weighting in WEIGHTINGS.values():
        for ends in ((1.0, 0.0), (0.0, 1.0), (0.0, 0.0)):
            pair = [torch.tensor([end], requires_grad=True) for end in ends]
            loss = weighting(*pair)
            grads = torch.autograd.grad(loss.sum(), pair, allow_unused=True)
            assert bool(loss.isfinite())
            assert all(grad is None or bool(grad.isfinite()) for grad in grads)


def test_those_that_vanish():
    assert [name for name, weighting in WEIGHTINGS.items() if vanishes(weighting)] == [
        "snr",
        "min-snr",
    ]
    assert set(WEIGHTINGS) == {"constant", "snr", "truncated-snr", "snr+1", "min-snr"}
