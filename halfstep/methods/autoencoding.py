"""Codec training: reconstruct images through a noisy latent (Kingma & Welling 2014; Rombach et al. 2022)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn, Tensor

from halfstep.batch import Batch
from halfstep.config.validate import NotNegative, Updates, Validated
from halfstep.errors import DataError
from halfstep.methods.stages import Objective, Stage
from halfstep.models.autoencoder.kl import KLCodec
from halfstep.pixels import as_floats
from halfstep.rng import Draw


@dataclass(frozen=True, kw_only=True)
class Autoencoding(Validated):
    """Train an image codec from data."""

    updates: Updates = 3_000
    """Optimiser updates."""
    error: Literal["absolute", "squared"] = "absolute"
    """The error summed over the values of an image; squared is best for PSNR."""
    kl_weight: NotNegative = 1e-6
    """Weight of the latent's divergence from unit noise, relative to that sum."""

    def stages(self, model: KLCodec) -> Iterator[Stage]:
        """One stage, with the model itself as the student."""
        model.refuse_changed()
        objective = Autoencode(model.channels, model.factor, self.error, self.kl_weight)
        yield Stage("codec", model, objective, self.updates)


@dataclass(frozen=True)
class Autoencode(Objective):
    """(error(x, decoded z) + kl_weight KL(q(z | x) || N(0, I))) / values of x, with z drawn from q.

    Kingma & Welling 2014, eq. 7, with the weight of Rombach et al. 2022, section G.  Both terms are sums over
    an image, divided by its number of values, so that the loss does not grow with its size.
    """

    channels: int
    factor: int
    error: str = "absolute"
    kl_weight: float = 1e-6

    def __call__(self, student: nn.Module, batch: Batch, draw: Draw) -> Tensor:
        x = batch.x0
        sides = [side // self.factor for side in x.shape[2:]]
        noise = draw.normal(x.new_empty(len(x), self.channels, *sides))
        moments, decoded = student(x, noise)
        off = x - decoded
        error = off.abs() if self.error == "absolute" else off.square()
        loss: Tensor = error.flatten(1).sum(1) + self.kl_weight * divergence(moments)
        return loss / x[0].numel()


def divergence(moments: Tensor) -> Tensor:
    """KL(q || N(0, I)) in nats, [B], of moments [B, 2 c, h, w] (Kingma & Welling 2014, appendix B).

    The log-variance is clamped as in drawing a latent.
    """
    mean, log_variance = moments.chunk(2, dim=1)
    log_variance = log_variance.clamp(-30, 20)
    terms = mean.square() + log_variance.exp() - 1 - log_variance
    total: Tensor = terms.flatten(1).sum(1)
    return total / 2


def unit_scale(latents: Tensor) -> float:
    """1 / standard deviation over all components of all latents (Rombach et al. 2022, section D.1)."""
    deviation = float(latents.double().std(correction=0))
    if not 0 < deviation < float("inf"):
        raise DataError(
            f"these latents have a standard deviation of {deviation:g}, which no scale brings to 1: train "
            "the codec longer, on more than one image"
        )
    return 1 / deviation


def psnr(images: Tensor, decoded: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image in dB, float64 [B]; in [-1, 1] the peak is 2."""
    squared = (as_floats(images).double() - as_floats(decoded).double()).square().flatten(1).mean(1)
    return 10 * torch.log10(4 / squared)
