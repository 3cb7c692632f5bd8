"""What stands between data and a model: an image codec for latent diffusion, an encoder of texts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor


class Codec(Protocol):
    """Images to latents and back (Rombach et al. 2022), as a variational autoencoder does it.

    scale     factor on the latents, which brings them near unit variance
    factor    pixels of an image to a side of its latent
    channels  of a latent
    """

    @property
    def scale(self) -> float: ...

    @property
    def factor(self) -> int: ...

    @property
    def channels(self) -> int: ...

    def moments(self, images: Tensor) -> Tensor:
        """Mean, then log-variance, without `scale`: [B, C, H, W] in [-1, 1] to [B, 2 c, h, w]."""

    def decode(self, latents: Tensor) -> Tensor:
        """Images in [-1, 1] from latents that carry `scale`."""

    def save(self, folder: Path) -> None:
        """Write it into the folder, whence `halfstep.models.autoencoder.kl.load_codec` reads it."""

    def digest(self) -> str:
        """sha256 of what it computes: caches belong to one codec."""


class Texts(Protocol):
    """Texts to the states that a network attends to.

    tokens  states of a text, whatever its length
    width   of a state
    """

    @property
    def tokens(self) -> int: ...

    @property
    def width(self) -> int: ...

    def encode(self, texts: Sequence[str]) -> Tensor:
        """float32 [B, tokens, width]."""


def sample_latents(moments: Tensor, noise: Tensor, scale: float) -> Tensor:
    """A latent from its moments: (mean + exp(log-variance / 2) noise) scale.

    The log-variance is clamped to [-30, 20], as in the official implementation.

    moments  [B, 2 c, h, w], mean first
    noise    [B, c, h, w]
    """
    mean, log_variance = moments.chunk(2, dim=1)
    return (mean + torch.exp(log_variance.clamp(-30, 20) / 2) * noise) * scale
