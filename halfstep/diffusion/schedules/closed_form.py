"""Schedules in closed form."""

from dataclasses import dataclass
from math import atan, exp
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Le
from torch import Tensor
from torch.nn import functional as F

from halfstep.config.validate import Positive, Validated
from halfstep.diffusion.schedules.level import inverse, Level, wide
from halfstep.errors import ConfigError

_End = Annotated[float, Ge(-30), Le(30)]
"""An end of the cosine's log-SNR: at -30 alpha is 3e-7, and float32 rounds the angle by up to 2e-7."""


@dataclass(frozen=True)
class Cosine(Validated):
    """alpha = cos(a t + b), sigma = sin(a t + b): the cosine with its ends moved inside.

    Salimans & Ho 2022; b = arctan(exp(-logsnr_max / 2)), a = arctan(exp(-logsnr_min / 2)) - b. At t = 0
    the log-SNR is `logsnr_max`, at t = 1 `logsnr_min`: neither end is exactly 0 or 1, and alpha(1) =
    sigma(0) = 4.54e-5 with the default ends.

    Args:
        logsnr_min: log(alpha^2 / sigma^2) at t = 1, pure noise.
        logsnr_max: log(alpha^2 / sigma^2) at t = 0, clean data.

    Raises:
        ConfigError: an end beyond its range, or `logsnr_max` not above `logsnr_min`.
    """

    logsnr_min: _End = -20.0
    logsnr_max: _End = 20.0
    variance_preserving: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.logsnr_min < self.logsnr_max and self.a > 0):
            raise ConfigError(
                f"the log-SNR falls from logsnr_max to logsnr_min, got {self.logsnr_max:g} and "
                f"{self.logsnr_min:g}: write for example 20 and -20"
            )

    @property
    def b(self) -> float:
        return atan(exp(-self.logsnr_max / 2))

    @property
    def a(self) -> float:
        return atan(exp(-self.logsnr_min / 2)) - self.b

    def at(self, t: Tensor) -> Level:
        angle = self.a * wide(t) + self.b
        return Level(angle.cos().to(t.dtype), angle.sin().to(t.dtype))

    @inverse
    def time(self, logsnr: Tensor) -> Tensor:
        return ((-logsnr / 2).exp().atan() - self.b) / self.a


_Beta = Annotated[float, Ge(0), Le(200)]
"""Larger betas would make alpha(1) = exp(-(beta_min + beta_max) / 4) 0 in float32."""


@dataclass(frozen=True)
class VPLinear(Validated):
    """The variance-preserving SDE with beta(t) from `beta_min` to `beta_max` (Song et al. 2021).

    log alpha^2 = -(beta_min t + (beta_max - beta_min) t^2 / 2). At t = 0 it is clean; at t = 1 alpha =
    0.0066 with the default ends.

    Args:
        beta_min: beta at t = 0.
        beta_max: beta at t = 1.

    Raises:
        ConfigError: an end beyond its range, or two that add no noise.
    """

    beta_min: _Beta = 0.1
    beta_max: _Beta = 20.0
    variance_preserving: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta_min + self.beta_max < 1e-6:
            raise ConfigError(
                f"beta from {self.beta_min:g} to {self.beta_max:g} adds no noise: write for example 0.1 "
                "and 20"
            )

    def at(self, t: Tensor) -> Level:
        s = wide(t)
        log_alpha2 = -(self.beta_min * s + (self.beta_max - self.beta_min) / 2 * s**2)
        alpha, sigma = (log_alpha2 / 2).exp(), (-log_alpha2.expm1()).sqrt()
        return Level(alpha.to(t.dtype), sigma.to(t.dtype))

    @inverse
    def time(self, logsnr: Tensor) -> Tensor:
        # -log alpha^2 = softplus(-logsnr) = beta_min t + (beta_max - beta_min) t^2 / 2, at most as at t = 1
        c, slope = F.softplus(-logsnr), self.beta_max - self.beta_min
        c = c.clamp(max=(self.beta_min + self.beta_max) / 2)
        root = (self.beta_min**2 + 2 * slope * c).clamp(min=0).sqrt()
        return torch.where(c > 0, 2 * c / (self.beta_min + root), c)


@dataclass(frozen=True)
class RectifiedFlow(Validated):
    """alpha = 1 - sigma, sigma = s t / (1 + (s - 1) t): rectified flow (Liu et al. 2023).

    Exact at both ends, at any shift.

    Args:
        shift: s, which moves the times of a grid towards noise (Esser et al. 2024, eq. 23); 1 is sigma =
            t.

    Raises:
        ConfigError: a shift beyond its range.
    """

    shift: Annotated[float, Ge(0.01), Le(1000)] = 1.0
    variance_preserving: ClassVar[bool] = False

    def at(self, t: Tensor) -> Level:
        s = wide(t)
        norm = 1 + (self.shift - 1) * s
        return Level(((1 - s) / norm).to(t.dtype), (self.shift * s / norm).to(t.dtype))

    @inverse
    def time(self, logsnr: Tensor) -> Tensor:
        sigma = (-logsnr / 2).sigmoid()
        return sigma / (self.shift - (self.shift - 1) * sigma)


_Sigma = Annotated[float, Ge(1e-18), Le(1e18)]
"""A sigma with a square that float32 holds."""


@dataclass(frozen=True)
class Karras(Validated):
    """alpha = 1, sigma from `sigma_min` to `sigma_max`: variance exploding (Karras et al. 2022, eq. 5).

    sigma(t)^(1/rho) is affine in t. At t = 0 sigma is `sigma_min`; sampling starts from sigma(1) * noise.

    Args:
        sigma_min: sigma at t = 0.
        sigma_max: sigma at t = 1.
        rho: larger values spend more of the grid near the data.

    Raises:
        ConfigError: sigma does not rise from `sigma_min` to `sigma_max`, or its powers overflow.
    """

    sigma_min: _Sigma = 0.002
    sigma_max: _Sigma = 80.0
    rho: Positive = 7.0
    variance_preserving: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sigma_min < self.sigma_max:
            raise ConfigError(
                f"sigma rises from sigma_min to sigma_max, got {self.sigma_min:g} and {self.sigma_max:g}: "
                "write for example 0.002 and 80"
            )
        if not self._is_precise:
            raise ConfigError(
                f"with rho = {self.rho:g} the powers of sigma between {self.sigma_min:g} and "
                f"{self.sigma_max:g} are beyond what numbers can hold: write for example rho=7"
            )

    @property
    def _is_precise(self) -> bool:
        """Whether sigma^(1 / rho) in float32 gives sigma to 1 % between the ends."""
        try:
            low, high = self._ends
        except OverflowError:
            return False
        return 2**-24 * self.rho < 0.01 and 0 < low < high * (1 - 1e-6)

    @property
    def _ends(self) -> tuple[float, float]:
        """sigma^(1/rho) at t = 0 and at t = 1."""
        power = 1 / self.rho
        return float(self.sigma_min**power), float(self.sigma_max**power)

    def at(self, t: Tensor) -> Level:
        low, high = self._ends
        sigma: Tensor = (low + wide(t) * (high - low)) ** self.rho
        return Level(torch.ones_like(t), sigma.to(t.dtype))

    @inverse
    def time(self, logsnr: Tensor) -> Tensor:
        low, high = self._ends
        return ((-logsnr / (2 * self.rho)).exp() - low) / (high - low)
