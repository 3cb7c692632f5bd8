"""Noise schedules.  One convention everywhere in halfstep:

    x_t = alpha(t) * x0 + sigma(t) * eps,    eps ~ N(0, I),    0 <= t <= 1,

with data at t = 0 and noise at t = 1.  `logsnr` is log(alpha^2 / sigma^2): it falls as t rises.

A schedule is a value: `at(t)` takes any shape of t and keeps its dtype; `time(logsnr)` is its inverse, in
[0, 1] also where the log-SNR is infinite.  Both are computed in float32 at least.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, wraps
from math import atan, exp, pi
from typing import Annotated, Any, ClassVar, Protocol

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor
from torch.nn import functional as F

from halfstep.config.validate import Positive, Validated
from halfstep.errors import ConfigError, unknown


@dataclass(frozen=True)
class Level:
    """How much signal and how much noise: `alpha` and `sigma`, each broadcastable to x."""

    alpha: Tensor
    sigma: Tensor

    @property
    def logsnr(self) -> Tensor:
        """log(alpha^2 / sigma^2): +inf where sigma = 0, -inf where alpha = 0."""
        return 2 * (self.alpha.log() - self.sigma.log())

    def mix(self, x0: Tensor, eps: Tensor) -> Tensor:
        """x_t = alpha x0 + sigma eps."""
        return self.alpha * x0 + self.sigma * eps


class Schedule(Protocol):
    """What every schedule has."""

    @property
    def variance_preserving(self) -> bool:
        """Whether alpha^2 + sigma^2 = 1, so that a walk starts from unit noise."""

    def at(self, t: Tensor) -> Level:
        """The level at time t in [0, 1]; any shape, dtype kept."""

    def time(self, logsnr: Tensor) -> Tensor:
        """The time at which log(alpha^2 / sigma^2) is `logsnr`; any shape, dtype kept."""


def _wide(x: Tensor) -> Tensor:
    """In float32, if it is in fewer bits."""
    if not x.is_floating_point():
        raise ConfigError(
            f"times and log-SNRs are floating point, got {str(x.dtype)[6:]}: write for example 1.0"
        )
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _inverse(time: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    """A schedule's `time`, computed in float32 at least and held to [0, 1], in its argument's dtype."""

    @wraps(time)
    def held(schedule: Any, logsnr: Tensor) -> Tensor:
        return time(schedule, _wide(logsnr)).clamp(0, 1).to(logsnr.dtype)

    return held


def arriving(schedule: Schedule, t: Tensor) -> Level:
    """The level of whoever arrives at t: clean data (alpha 1, sigma 0) at t = 0, else `at(t)`.

    This is the last-step rule of Salimans & Ho's samplers and targets.  Whoever starts at t = 0 uses
    `schedule.at` instead.
    """
    level, landed = schedule.at(t), t == 0
    alpha = torch.where(landed, torch.ones_like(level.alpha), level.alpha)
    return Level(alpha, torch.where(landed, torch.zeros_like(level.sigma), level.sigma))


_End = Annotated[float, Ge(-30), Le(30)]
"""Of a cosine: at -30 alpha is 3e-7, and float32 rounds the angle by up to 2e-7; at 35 float16 has none."""


@dataclass(frozen=True)
class Cosine(Validated):
    """alpha = cos(a t + b), sigma = sin(a t + b): the cosine with its ends moved inside.

    Salimans & Ho 2022; b = arctan(exp(-logsnr_max / 2)), a = arctan(exp(-logsnr_min / 2)) - b.
    At t = 0 the log-SNR is `logsnr_max`, at t = 1 `logsnr_min`: neither end is exactly 0 or 1, and
    alpha(1) = sigma(0) = 4.54e-5 with the default ends.
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
        angle = self.a * _wide(t) + self.b
        return Level(angle.cos().to(t.dtype), angle.sin().to(t.dtype))

    @_inverse
    def time(self, logsnr: Tensor) -> Tensor:
        return ((-logsnr / 2).exp().atan() - self.b) / self.a


_Beta = Annotated[float, Ge(0), Le(200)]
"""Of two larger ones alpha(1), exp(-(beta_min + beta_max) / 4), would be 0 in float32."""


@dataclass(frozen=True)
class VPLinear(Validated):
    """The variance-preserving SDE with beta(t) from `beta_min` to `beta_max` (Song et al. 2021).

    log alpha^2 = -(beta_min t + (beta_max - beta_min) t^2 / 2).  At t = 0 it is clean; at t = 1
    alpha = 0.0066 with the default ends.
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
        s = _wide(t)
        log_alpha2 = -(self.beta_min * s + (self.beta_max - self.beta_min) / 2 * s**2)
        alpha, sigma = (log_alpha2 / 2).exp(), (-log_alpha2.expm1()).sqrt()
        return Level(alpha.to(t.dtype), sigma.to(t.dtype))

    @_inverse
    def time(self, logsnr: Tensor) -> Tensor:
        # -log alpha^2 = softplus(-logsnr) = beta_min t + (beta_max - beta_min) t^2 / 2, at most as at t = 1
        c, slope = F.softplus(-logsnr), self.beta_max - self.beta_min
        c = c.clamp(max=(self.beta_min + self.beta_max) / 2)
        root = (self.beta_min**2 + 2 * slope * c).clamp(min=0).sqrt()
        return torch.where(c > 0, 2 * c / (self.beta_min + root), c)


@dataclass(frozen=True)
class RectifiedFlow:
    """alpha = 1 - t, sigma = t: rectified flow (Liu et al. 2023).  Exact at both ends."""

    variance_preserving: ClassVar[bool] = False

    def at(self, t: Tensor) -> Level:
        return Level((1 - _wide(t)).to(t.dtype), t)

    @_inverse
    def time(self, logsnr: Tensor) -> Tensor:
        return (-logsnr / 2).sigmoid()


_Sigma = Annotated[float, Ge(1e-18), Le(1e18)]
"""Whose squares float32 holds."""


@dataclass(frozen=True)
class Karras(Validated):
    """alpha = 1, sigma from `sigma_min` to `sigma_max`: variance exploding (Karras et al. 2022, eq. 5).

    sigma(t)^(1/rho) is affine in t.  At t = 0 sigma is `sigma_min`; a walk starts from sigma(1) * noise.
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
        """Whether float32 knows sigma between the ends, to a hundredth, from sigma^(1 / rho)."""
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
        sigma: Tensor = (low + _wide(t) * (high - low)) ** self.rho
        return Level(torch.ones_like(t), sigma.to(t.dtype))

    @_inverse
    def time(self, logsnr: Tensor) -> Tensor:
        low, high = self._ends
        return ((-logsnr / (2 * self.rho)).exp() - low) / (high - low)


_OfTable = Annotated[float, Gt(0), Lt(1)]


@dataclass(frozen=True)
class BetaTable(Validated):
    """A table of betas as diffusers' schedulers have it, read at continuous times.

    kind      'linear', 'scaled_linear', 'squaredcos_cap_v2' or 'trained_betas'
    betas     the table itself, for 'trained_betas' alone
    zero_snr  rescale so that alpha = 0 at t = 1 (Lin et al. 2024, Algorithm 1)

    Entry n (0-based, diffusers' timestep) lies at t = (n + 1) / levels; t = 0 is clean.  Between the
    entries the log-SNR is interpolated.  Times in (0, 1 / levels), and with `zero_snr` in
    (1 - 1 / levels, 1), have no level and are refused.
    """

    kind: str = "linear"
    levels: Annotated[int, Ge(1), Le(1_000_000)] = 1000
    beta_start: _OfTable = 1e-4
    beta_end: _OfTable = 0.02
    betas: tuple[Annotated[float, Gt(0), Le(1)], ...] = ()
    zero_snr: bool = False
    variance_preserving: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind not in _BETAS:
            raise unknown("beta table", self.kind, _BETAS)
        if (self.kind == "trained_betas") != bool(self.betas):
            raise ConfigError("betas are given with kind='trained_betas', and with no other kind")
        if self.betas and len(self.betas) != self.levels:
            raise ConfigError(
                f"levels={self.levels} but {len(self.betas)} betas: write levels={len(self.betas)}"
            )
        if self.zero_snr and self.levels < 2:
            raise ConfigError("zero_snr moves all levels but the first: write levels=2 or more")
        table = _table(self)
        # The last may have no signal at all: -inf.
        if not bool(
            table[:-1].isfinite().all() and (table.diff() < 0).all() and table[-1] < float("inf")
        ):
            raise ConfigError(
                "these betas are no schedule, in which each level has less signal than the one before and "
                "all but the last have some: write smaller betas, or fewer"
            )

    def at(self, t: Tensor) -> Level:
        level = self._at(_wide(t), torch.finfo(t.dtype).eps)
        return Level(level.alpha.to(t.dtype), level.sigma.to(t.dtype))

    def _at(self, t: Tensor, eps: float) -> Level:
        """The level at t, which was rounded as to this epsilon."""
        logsnr = _table(self).to(t.device, t.dtype)
        place = t * self.levels - 1
        # Some rounding of t is no time between the levels: it is put on its level.  What is rounded to more
        # than half of one, as bfloat16 is, is so where there is none between.
        near, rounding = place.round(), 4 * self.levels * eps
        ends = (place < 0) | (place > self.levels - 2)
        place = torch.where(
            ((place - near).abs() <= rounding) & (ends | (rounding < 0.5)), near, place
        )
        if bool(((place < 0) & (t > 0)).any()):
            raise ConfigError(
                f"times between 0 and 1/{self.levels} have no level in a table of {self.levels}: use "
                f"a grid whose steps divide {self.levels}, or grid='trailing'"
            )
        if logsnr[-1] == -torch.inf and bool(
            ((place > self.levels - 2) & (place < self.levels - 1)).any()
        ):
            raise ConfigError(
                f"times between {1 - 1 / self.levels:g} and 1 have no level in a zero-terminal-SNR "
                f"table of {self.levels}: use a grid whose steps divide {self.levels}"
            )
        place = place.clamp(0, self.levels - 1)
        below = place.floor().clamp(max=max(self.levels - 2, 0))
        share, n = place - below, below.nan_to_num().long()
        low, high = logsnr[n], logsnr[(n + 1).clamp(max=self.levels - 1)]
        # `where` and not a plain lerp: the last entry may be -inf, and 0 * inf is nan.
        inner = torch.where(share == 0, low, low + share * (high - low))
        value = torch.where(share >= 1, high, inner)
        clean = t <= 0
        alpha = torch.where(clean, torch.ones_like(t), value.sigmoid().sqrt())
        return Level(alpha, torch.where(clean, torch.zeros_like(t), (-value).sigmoid().sqrt()))

    @_inverse
    def time(self, logsnr: Tensor) -> Tensor:
        falling = _table(self).to(logsnr.device, logsnr.dtype)
        last = self.levels - 1
        right = torch.searchsorted(-falling, -logsnr.contiguous()).clamp(min(1, last), last)
        low, high = falling[(right - 1).clamp(min=0)], falling[right]
        share = ((logsnr - low) / (high - low)).clamp(0, 1).nan_to_num(1.0)
        place = ((right - 1).clamp(min=0) + share + 1) / self.levels
        place = torch.where(logsnr == torch.inf, 0, place)
        return torch.where(logsnr.isnan(), logsnr, place)


def _linear(table: BetaTable) -> Tensor:
    return torch.linspace(table.beta_start, table.beta_end, table.levels, dtype=torch.float64)


def _scaled_linear(table: BetaTable) -> Tensor:
    ends = table.beta_start**0.5, table.beta_end**0.5
    return torch.linspace(*ends, table.levels, dtype=torch.float64) ** 2


def _squared_cosine(table: BetaTable) -> Tensor:
    t = torch.arange(table.levels + 1, dtype=torch.float64) / table.levels
    alpha2 = ((t + 0.008) / 1.008 * pi / 2).cos() ** 2
    return (1 - alpha2[1:] / alpha2[:-1]).clamp(max=0.999)


def _trained(table: BetaTable) -> Tensor:
    return torch.tensor(table.betas, dtype=torch.float64)


_BETAS = {
    "linear": _linear,
    "scaled_linear": _scaled_linear,
    "squaredcos_cap_v2": _squared_cosine,
    "trained_betas": _trained,
}


@lru_cache(maxsize=32)
def _table(table: BetaTable) -> Tensor:
    """log-SNR of every entry, float64."""
    alpha = (1 - _BETAS[table.kind](table)).log().cumsum(0).div(2).exp()
    if table.zero_snr:
        alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
    return 2 * alpha.log() - torch.log1p(-(alpha**2))


SCHEDULES: dict[
    str, type[Cosine] | type[VPLinear] | type[RectifiedFlow] | type[Karras] | type[BetaTable]
] = {
    "cosine": Cosine,
    "vp-linear": VPLinear,
    "rectified-flow": RectifiedFlow,
    "karras": Karras,
    "beta-table": BetaTable,
}
