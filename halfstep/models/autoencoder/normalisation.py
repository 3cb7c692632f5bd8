"""The mean and deviation of an autoencoder's latents, which its config may have for each channel."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Gt
from torch import Tensor

from halfstep.config import NetConfig
from halfstep.config.validate import is_valid, shown
from halfstep.errors import ConfigError


@dataclass(frozen=True)
class Normalisation:
    """Normalises each channel of a latent: (z - mean) / std.

    mean  of each channel: diffusers' `latents_mean`, or its `shift_factor` for all channels
    std   of each channel: diffusers' `latents_std`, or 1
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, config: NetConfig, channels: int) -> "Normalisation | None":
        """The normalisation in an autoencoder's config; None where its latents are only scaled.

        channels  of a latent
        """
        shift, mean, std = (config.get(k) for k in ("shift_factor", "latents_mean", "latents_std"))
        if mean is None and std is None:
            if not shift:
                return None
            return cls(_numbers("shift_factor", [shift] * channels, channels), (1.0,) * channels)
        if shift or mean is None or std is None:
            raise ConfigError(
                "a codec has latents_mean and latents_std, or shift_factor: give both of the first, or the "
                "last alone"
            )
        return cls(
            _numbers("latents_mean", mean, channels),
            _numbers("latents_std", std, channels, Annotated[float, Gt(0)]),
        )

    def moments(self, moments: Tensor) -> Tensor:
        """Mean and log-variance of the normalised latents, from those of z: [B, 2 c, h, w]."""
        z, log_variance = moments.chunk(2, dim=1)
        mean, std = self._like(moments)
        return torch.cat([(z - mean) / std, log_variance - 2 * std.log()], dim=1)

    def undone(self, latents: Tensor) -> Tensor:
        """z, from normalised latents: [B, c, h, w]."""
        mean, std = self._like(latents)
        return latents * std + mean

    def _like(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = x.new_tensor([self.mean, self.std])[..., None, None]
        return mean, std


def _numbers(name: str, values: Any, channels: int, hint: Any = float) -> tuple[float, ...]:
    """A number for each channel; `ConfigError` for anything else."""
    listed = isinstance(values, Sequence) and len(values) == channels
    if listed and all(is_valid(value, hint) for value in values):
        return tuple(map(float, values))
    raise ConfigError(
        f"{name} of a codec is {'a number above 0' if hint is not float else 'a number'} for each of its "
        f"{channels} channels, got {shown(values)}"
    )
