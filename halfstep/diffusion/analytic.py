"""Exact teachers in closed form, for tests of halfstep and of your own method.

The data are a Gaussian or a mixture of Gaussians, so the optimal denoiser, its guided form and (for one
Gaussian) the probability flow are known in closed form for every schedule.
"""

from dataclasses import dataclass

import torch
from torch import nn, Tensor

from halfstep.batch import Cond
from halfstep.diffusion.denoiser import Denoiser, NetTime
from halfstep.diffusion.prediction import Parameterisation, Prediction, V
from halfstep.diffusion.schedules import Schedule


@dataclass(frozen=True)
class Mixture:
    """The distribution sum_k weight_k N(mean_k, std_k^2 I) over vectors of `len(means[0])` values.

    The `Cond` label k selects component k; the label `len(means)`, or no condition, selects all.
    """

    means: tuple[tuple[float, ...], ...] = ((-0.6, 0.3), (0.5, 0.4), (0.1, -0.7))
    stds: tuple[float, ...] = (0.2, 0.15, 0.25)
    weights: tuple[float, ...] = (0.3, 0.5, 0.2)

    def draw(
        self, n: int, generator: torch.Generator, dtype: torch.dtype = torch.float64
    ) -> Tensor:
        """n samples of the data, [n, D]."""
        return self.labelled(n, generator, dtype)[0]

    def labelled(
        self, n: int, generator: torch.Generator, dtype: torch.dtype = torch.float64
    ) -> tuple[Tensor, Tensor]:
        """n samples [n, D] and their components [n]."""
        weights = torch.tensor(self.weights, dtype=dtype)
        label = torch.multinomial(weights, n, replacement=True, generator=generator)
        means, stds = torch.tensor(self.means, dtype=dtype), torch.tensor(self.stds, dtype=dtype)
        noise = torch.randn(n, means.shape[1], generator=generator, dtype=dtype)
        return means[label] + stds[label, None] * noise, label


class _Posterior(nn.Module):
    """E[x0 | x_t, label] of a mixture, written as the output of the given parameterisation."""

    def __init__(self, data: Mixture, schedule: Schedule, parameterisation: Parameterisation):
        super().__init__()
        self.data, self.schedule, self.parameterisation = data, schedule, parameterisation

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        flat = x_t.flatten(1)
        level = self.schedule.at(t.reshape(-1, 1))
        mean, std, weight = (
            torch.tensor(v, dtype=x_t.dtype)
            for v in (self.data.means, self.data.stds, self.data.weights)
        )
        away = flat[:, None] - level.alpha[..., None] * mean  #                          [B, K, D]
        spread = level.alpha**2 * std**2 + level.sigma**2  #                             [B, K]
        logits = (
            weight.log() - away.square().sum(-1) / (2 * spread) - flat.shape[1] / 2 * spread.log()
        )
        if cond is not None and cond.label is not None:
            component = torch.arange(len(self.data.means))
            other = (cond.label[:, None] != component) & (
                cond.label[:, None] < len(self.data.means)
            )
            logits = logits.masked_fill(other, -torch.inf)
        share = logits.softmax(1)[..., None]
        # eps is written so that nothing divides by sigma: it is exact at both ends.
        x0 = (share * (mean + (level.alpha * std**2 / spread)[..., None] * away)).sum(1)
        eps = (share * (level.sigma / spread)[..., None] * away).sum(1)
        pred = Prediction(x0.reshape(x_t.shape), eps.reshape(x_t.shape))
        shaped = self.schedule.at(t.reshape(-1, *[1] * (x_t.ndim - 1)))
        return self.parameterisation.encode(pred, shaped)


def mixture_teacher(
    schedule: Schedule,
    data: Mixture | None = None,
    parameterisation: Parameterisation | None = None,
) -> Denoiser:
    """The exact denoiser of a mixture; in `Guided`, the exact guided denoiser.

    Runs in the dtype of x (float64 for exactness).  x is float [B, ...] with D values per sample.
    """
    reads = parameterisation or V()
    net = _Posterior(data or Mixture(), schedule, reads)
    return Denoiser(net, schedule, reads, time=NetTime(scale=1.0))


def gaussian_teacher(
    schedule: Schedule,
    mean: float = 0.3,
    std: float = 0.5,
    parameterisation: Parameterisation | None = None,
) -> Denoiser:
    """The exact denoiser of data ~ N(mean, std^2) in every value; its samples are `gaussian_flow`."""
    data = Mixture(means=((mean,),), stds=(std,), weights=(1.0,))
    return mixture_teacher(schedule, data, parameterisation)


def gaussian_flow(
    schedule: Schedule, x: Tensor, t: float, s: float, mean: float = 0.3, std: float = 0.5
) -> Tensor:
    """The probability-flow ODE's map of x from time t to time s, in closed form."""
    level_t, level_s = (schedule.at(torch.tensor(time, dtype=torch.float64)) for time in (t, s))
    spread_t, spread_s = ((a.alpha**2 * std**2 + a.sigma**2).sqrt() for a in (level_t, level_s))
    return level_s.alpha * mean + spread_s / spread_t * (x - level_t.alpha * mean)
