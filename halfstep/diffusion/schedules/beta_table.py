"""Schedules that are a table of betas, as diffusers' schedulers have them."""

from dataclasses import dataclass
from functools import lru_cache
from math import pi
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor

from halfstep.config.validate import Validated
from halfstep.diffusion.schedules.level import inverse, Level, wide
from halfstep.errors import ConfigError, unknown

_Beta = Annotated[float, Gt(0), Lt(1)]


@dataclass(frozen=True)
class BetaTable(Validated):
    """A table of betas as in diffusers' schedulers, read at continuous times.

    Entry n (0-based, diffusers' timestep) lies at t = (n + 1) / levels; t = 0 is clean. Between the
    entries the log-SNR is interpolated. Times in (0, 1 / levels), and with `zero_snr` in (1 - 1 / levels,
    1), have no level.

    Args:
        kind: 'linear', 'scaled_linear', 'squaredcos_cap_v2' or 'trained_betas'.
        levels: number of entries.
        beta_start: the first beta of a linear table.
        beta_end: the last beta of a linear table.
        betas: the table itself, for 'trained_betas' only.
        zero_snr: rescale so that alpha = 0 at t = 1 (Lin et al. 2024, Algorithm 1).

    Raises:
        ConfigError: a table that is no schedule; and `at`, for times that have no level.
    """

    kind: str = "linear"
    levels: Annotated[int, Ge(1), Le(1_000_000)] = 1000
    beta_start: _Beta = 1e-4
    beta_end: _Beta = 0.02
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
        # The last level may have no signal at all: -inf.
        if not bool(
            table[:-1].isfinite().all() and (table.diff() < 0).all() and table[-1] < float("inf")
        ):
            raise ConfigError(
                "these betas are not a schedule: each level must have less signal than the one before, and "
                "all but the last some signal: write smaller betas, or fewer"
            )

    def at(self, t: Tensor) -> Level:
        level = self._at(wide(t), torch.finfo(t.dtype).eps)
        return Level(level.alpha.to(t.dtype), level.sigma.to(t.dtype))

    def _at(self, t: Tensor, eps: float) -> Level:
        """The level at t, a time with rounding errors of this epsilon."""
        logsnr = _table(self).to(t.device, t.dtype)
        place = t * self.levels - 1
        # A rounded t is moved to the nearest level.  Where rounding exceeds half a level, as in bfloat16,
        # this applies only outside the interpolated range.
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

    @inverse
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
    """The log-SNR of every entry, float64."""
    alpha = (1 - _BETAS[table.kind](table)).log().cumsum(0).div(2).exp()
    if table.zero_snr:
        alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
    return 2 * alpha.log() - torch.log1p(-(alpha**2))
