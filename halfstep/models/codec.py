"""Protocols of the image codec of latent diffusion, and of the text encoder."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

import torch
from torch import nn, Tensor

from halfstep.batch import Cond


class Codec(Protocol):
    """Maps images to latents and back (Rombach et al. 2022), as a variational autoencoder.

    Latents are (z - mean) / std * scale of the autoencoder's z: `moments` and `decode` include mean and std,
    where a codec has them for its channels, and leave `scale` to `sample_latents`.

    scale     factor on the latents, for unit variance
    factor    side of an image in pixels per side of its latent
    channels  of a latent
    """

    @property
    def scale(self) -> float: ...

    @property
    def factor(self) -> int: ...

    @property
    def channels(self) -> int: ...

    def moments(self, images: Tensor) -> Tensor:
        """Mean and log-variance, without `scale`: [B, C, H, W] in [-1, 1] to [B, 2 c, h, w]."""

    def decode(self, latents: Tensor) -> Tensor:
        """Images in [-1, 1] from latents that carry `scale`."""

    def save(self, folder: Path) -> None:
        """Write it into the folder, for `halfstep.models.autoencoder.kl.load_codec`."""

    def digest(self) -> str:
        """sha256 of the weights, the key of caches."""


class Texts(Protocol):
    """Maps texts to the conditions of a network."""

    def conditions(self, texts: Sequence[str]) -> Cond:
        """The states of these texts as `encoder_hidden_states`, and named tensors; one row a text.

        Named tensors, such as pooled_projections or encoder_attention_mask, are in `added`.
        """

    def null(self) -> Cond:
        """The condition of the branch of guidance without a text, in one row."""

    def digest(self) -> str:
        """The key of cached conditions."""

    def on(self, device: torch.device | str) -> AbstractContextManager[None]:
        """Inside it texts are encoded on this device; afterwards the encoders are where they were."""

    def release(self) -> None:
        """Free what can be loaded again."""


@contextmanager
def on_device(net: object, device: torch.device | str) -> Iterator[None]:
    """Inside it a network is on this device; afterwards it is where it was."""
    first = next(net.parameters(), None) if isinstance(net, nn.Module) else None
    if not isinstance(net, nn.Module) or first is None:
        yield
        return
    before = first.device
    with torch.inference_mode(False):  # weights stay ones that can be trained
        net.to(device)
    try:
        yield
    finally:
        with torch.inference_mode(False):
            net.to(before)


LEAST = -30.0
"""The log-variance without noise: `sample_latents` takes none below."""


def sample_latents(moments: Tensor, noise: Tensor, scale: float) -> Tensor:
    """Sample latents from their moments: (mean + exp(log-variance / 2) noise) scale.

    The log-variance is clamped to [-30, 20], as in the official implementation.

    moments  [B, 2 c, h, w], mean first
    noise    [B, c, h, w]
    """
    mean, log_variance = moments.chunk(2, dim=1)
    return (mean + torch.exp(log_variance.clamp(LEAST, 20) / 2) * noise) * scale
