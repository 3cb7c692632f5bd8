"""Predictions, and the parameterisations of network outputs that are decoded into them.

Samplers and losses see only a `Prediction`, the pair (x0, eps) with `level.mix(x0, eps) == x_t`, whether the
network outputs x0, eps, v or a velocity.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from halfstep.config.validate import Positive, validate, Validated
from halfstep.diffusion.schedules import Level
from halfstep.errors import ConfigError


@dataclass(frozen=True)
class Prediction:
    """The clean image and the noise predicted from x_t: `level.mix(x0, eps) == x_t`.

    Args:
        x0: float [B, ...], the clean image.
        eps: float [B, ...], the noise.
    """

    x0: Tensor
    eps: Tensor

    @classmethod
    def from_x0(cls, x0: Tensor, x_t: Tensor, level: Level) -> "Prediction":
        """The prediction with this x0: eps = (x_t - alpha x0) / sigma.

        Args:
            x0: float [B, ...].
            x_t: float [B, ...], the noisy data.
            level: alpha and sigma, broadcastable to x_t.

        Raises:
            ConfigError: sigma = 0.
        """
        if _is_true((level.sigma == 0).any()):
            raise ConfigError(
                "an x0 output does not determine eps at sigma = 0: start above t = 0, or use a "
                "network that predicts v"
            )
        return cls(x0, (x_t - level.alpha * x0) / level.sigma)

    @classmethod
    def from_eps(cls, eps: Tensor, x_t: Tensor, level: Level) -> "Prediction":
        """The prediction with this eps: x0 = (x_t - sigma eps) / alpha.

        Args:
            eps: float [B, ...].
            x_t: float [B, ...], the noisy data.
            level: alpha and sigma, broadcastable to x_t.

        Raises:
            ConfigError: alpha = 0.
        """
        if _is_true((level.alpha == 0).any()):
            raise ConfigError(
                "an eps output does not determine x0 at alpha = 0: start below t = 1, or turn the "
                "network into one that predicts v (halfstep distill reparameterise)"
            )
        return cls((x_t - level.sigma * eps) / level.alpha, eps)

    def toward(self, other: "Prediction", scale: float | Tensor) -> "Prediction":
        """self at scale 0, other at scale 1, beyond other above 1 (classifier-free guidance).

        Args:
            other: the prediction at scale 1.
            scale: a number, or float [B, 1, ...].
        """
        x0 = self.x0 + scale * (other.x0 - self.x0)
        return Prediction(x0, self.eps + scale * (other.eps - self.eps))

    def clipped(self, x_t: Tensor, level: Level, bound: float = 1.0) -> "Prediction":
        """x0 clipped to [-bound, bound], and the eps that goes with it.

        Args:
            x_t: float [B, ...], the noisy data.
            level: alpha and sigma, broadcastable to x_t.
            bound: above 0.

        Raises:
            ConfigError: sigma = 0.
        """
        return Prediction.from_x0(self.x0.clamp(-bound, bound), x_t, level)


Clipping = Literal["x0-and-eps", "x0"]
"""What clipping changes: x0 and, with it, eps; or x0 alone, as diffusers' `clip_sample` does."""


@dataclass(frozen=True)
class Clip(Validated):
    """Clip every predicted x0 to [-bound, bound] when sampling.

    Args:
        bound: above 0.
        kind: "x0-and-eps" recomputes eps from x_t and the clipped x0, which needs sigma > 0: diffusers'
            `use_clipped_model_output`. "x0" leaves eps as the network predicted it: diffusers'
            `clip_sample` alone. Then the pair does not mix to x_t, so "x0" is for DDIM and the stochastic
            sampler, and not for steps that read x_t as well.

    Raises:
        ConfigError: a bound that is not above 0, or an unknown kind.
    """

    bound: Positive = 1.0
    kind: Clipping = "x0-and-eps"

    @classmethod
    def of(cls, clip: "float | Clip | None") -> "Clip | None":
        """The clipping of a bound alone, of kind "x0-and-eps"; `ConfigError` for what is no bound."""
        if isinstance(clip, cls):
            return clip
        bound = validate("clip", clip, Positive | None)
        return None if bound is None else cls(bound)

    def __call__(self, pred: Prediction, x_t: Tensor, level: Level) -> Prediction:
        """The clipped prediction from x_t at this level."""
        if self.kind == "x0":
            return Prediction(pred.x0.clamp(-self.bound, self.bound), pred.eps)
        return pred.clipped(x_t, level, self.bound)


def _is_true(condition: Tensor) -> bool:
    """The value of a 0-dimensional bool tensor; False while torch.export traces, where it is unknown."""
    return not torch.compiler.is_exporting() and bool(condition)


class Parameterisation(Protocol):
    """A network's output: `decode` reads it as a prediction, and `encode`, the exact inverse, writes it."""

    outputs: ClassVar[int]
    """Output channels per channel of x."""
    blind_to_data: ClassVar[bool]
    """Whether the output does not determine x0 as the SNR goes to 0."""
    blind_to_noise: ClassVar[bool]
    """Whether the output does not determine eps as the SNR goes to infinity."""

    def decode(self, out: Tensor, x_t: Tensor, level: Level) -> Prediction: ...
    def encode(self, pred: Prediction, level: Level) -> Tensor: ...


@dataclass(frozen=True)
class X0:
    """The network predicts the clean image.

    The output, float [B, C, ...] like x_t, is x0. It has no eps at sigma = 0.

    Raises:
        ConfigError: `decode` at sigma = 0.
    """

    outputs: ClassVar[int] = 1
    blind_to_data: ClassVar[bool] = False
    blind_to_noise: ClassVar[bool] = True

    def decode(self, out: Tensor, x_t: Tensor, level: Level) -> Prediction:
        return Prediction.from_x0(out, x_t, level)

    def encode(self, pred: Prediction, level: Level) -> Tensor:
        return pred.x0


@dataclass(frozen=True)
class Eps:
    """The network predicts the noise (Ho et al. 2020).

    The output, float [B, C, ...] like x_t, is eps. It has no x0 at alpha = 0, so that students of such
    teachers start with a v teacher.

    Raises:
        ConfigError: `decode` at alpha = 0.
    """

    outputs: ClassVar[int] = 1
    blind_to_data: ClassVar[bool] = True
    blind_to_noise: ClassVar[bool] = False

    def decode(self, out: Tensor, x_t: Tensor, level: Level) -> Prediction:
        return Prediction.from_eps(out, x_t, level)

    def encode(self, pred: Prediction, level: Level) -> Tensor:
        return pred.eps


@dataclass(frozen=True)
class V:
    """The network predicts v = alpha eps - sigma x0 (Salimans & Ho 2022, section 4).

    The output is float [B, C, ...] like x_t, and determines x0 and eps at every time.

    Raises:
        ConfigError: a `Denoiser` is called and its network's output has another shape.
    """

    outputs: ClassVar[int] = 1
    blind_to_data: ClassVar[bool] = False
    blind_to_noise: ClassVar[bool] = False

    def decode(self, out: Tensor, x_t: Tensor, level: Level) -> Prediction:
        norm = level.alpha**2 + level.sigma**2  # 1 if variance preserving
        x0 = (level.alpha * x_t - level.sigma * out) / norm
        return Prediction(x0, (level.sigma * x_t + level.alpha * out) / norm)

    def encode(self, pred: Prediction, level: Level) -> Tensor:
        return level.alpha * pred.eps - level.sigma * pred.x0


@dataclass(frozen=True)
class Velocity:
    """The network predicts eps - x0, the velocity of the straight path (Liu et al. 2023, eq. 1).

    The output is float [B, C, ...] like x_t, and determines x0 and eps at every time.

    Raises:
        ConfigError: a `Denoiser` is called and its network's output has another shape.
    """

    outputs: ClassVar[int] = 1
    blind_to_data: ClassVar[bool] = False
    blind_to_noise: ClassVar[bool] = False

    def decode(self, out: Tensor, x_t: Tensor, level: Level) -> Prediction:
        x0 = (x_t - level.sigma * out) / (level.alpha + level.sigma)
        return Prediction(x0, x0 + out)

    def encode(self, pred: Prediction, level: Level) -> Tensor:
        return pred.eps - pred.x0


@dataclass(frozen=True)
class X0AndEps:
    """The network predicts (x0, eps), which are merged (Salimans & Ho 2022, section 4).

    The output, float [B, 2 C, ...], has x0 in its first half of the channels and eps in the second: x0 =
    (sigma^2 o_x + alpha (x_t - sigma o_eps)) / (alpha^2 + sigma^2), and the eps that goes with it. It is
    readable at every time.

    Raises:
        ConfigError: a `Denoiser` is called and its network's output has another shape.
    """

    outputs: ClassVar[int] = 2
    blind_to_data: ClassVar[bool] = False
    blind_to_noise: ClassVar[bool] = False

    def decode(self, out: Tensor, x_t: Tensor, level: Level) -> Prediction:
        o_x, o_eps = out.chunk(2, dim=1)
        alpha, sigma = level.alpha, level.sigma
        norm = alpha**2 + sigma**2
        x0 = (sigma**2 * o_x + alpha * (x_t - sigma * o_eps)) / norm
        return Prediction(x0, (sigma * (x_t - alpha * o_x) + alpha**2 * o_eps) / norm)

    def encode(self, pred: Prediction, level: Level) -> Tensor:
        return torch.cat([pred.x0, pred.eps], dim=1)


PARAMETERISATIONS: dict[str, Parameterisation] = {
    "x0": X0(),
    "eps": Eps(),
    "v": V(),
    "velocity": Velocity(),
    "x0-and-eps": X0AndEps(),
}
