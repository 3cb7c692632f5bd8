"""The sigmas of ComfyUI's schedulers for the sampler euler.

ComfyUI reads no scheduler_config.json: it picks its sigmas from a table of the model, which its nodes
ModelSamplingDiscrete, ModelSamplingSD3 and ModelSamplingFlux replace.  Sigmas are sigma / alpha of a table
of betas, and the flow's own sigma, from 1 to 0.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

ZERO_SNR = 4.8973451890853435e-08
"""ComfyUI's alpha^2 at the last level of a table of zero terminal SNR."""
CLOSE = 1e-5
"""A sigma that `normal` takes for 0."""


class NoiseTable(Protocol):
    """The noise levels of a model; a place is a timestep, which need not be an entry."""

    @property
    def sigmas(self) -> Tensor:
        """float64 [T], rising."""

    def sigma_at(self, place: Tensor) -> Tensor:
        """The sigma at a place."""

    def place_of(self, sigma: Tensor) -> Tensor:
        """The timestep that the network receives at a sigma."""


@dataclass(frozen=True)
class DiscreteTable:
    """A table of betas: between its entries the logarithm of sigma is interpolated.

    sigmas  sigma / alpha, float64 [T], finite, rising
    """

    sigmas: Tensor

    def sigma_at(self, place: Tensor) -> Tensor:
        """The sigma at a place between 0 and T - 1."""
        logs, last = self.sigmas.log(), len(self.sigmas) - 1
        below = place.clamp(0, last).floor().long()
        above = (below + 1).clamp(max=last)
        return torch.lerp(logs[below], logs[above], place.clamp(0, last) - below).exp()

    def place_of(self, sigma: Tensor) -> Tensor:
        """The entry with the nearest logarithm."""
        return (sigma.log()[:, None] - self.sigmas.log()).abs().argmin(1).double()


@dataclass(frozen=True)
class FlowTable:
    """Flow matching: sigma = shift t / (1 + (shift - 1) t) with t = place / 1000 (Esser et al. 2024, eq. 23).

    levels  entries of the table: 1000, and 10000 of Flux
    """

    shift: float
    levels: int = 1000

    @property
    def sigmas(self) -> Tensor:
        """The sigmas of the entries, rising to 1."""
        t = torch.arange(1, self.levels + 1, dtype=torch.float64) / self.levels
        return self.sigma_at(1000 * t)

    def sigma_at(self, place: Tensor) -> Tensor:
        """The shifted sigma: 0 at place 0, 1 at place 1000."""
        t = place / 1000
        return self.shift * t / (1 + (self.shift - 1) * t)

    def place_of(self, sigma: Tensor) -> Tensor:
        """1000 sigma: not the inverse of `sigma_at`, so that `normal` and `sgm_uniform` shift twice."""
        return 1000 * sigma


def discrete_table(alphas_cumprod: Tensor) -> DiscreteTable:
    """ComfyUI's table from alpha^2 at each level; an alpha^2 near 0 at the end becomes ComfyUI's own."""
    alpha2 = alphas_cumprod.double().clone()
    if alpha2[-1] < 2 * ZERO_SNR:
        alpha2[-1] = ZERO_SNR
    return DiscreteTable(((1 - alpha2) / alpha2).sqrt())


def simple(table: NoiseTable, steps: int) -> Tensor:
    """Entries at equal distances from the noisiest, rounded towards it; then 0."""
    levels = len(table.sigmas)
    entries = [levels - 1 - int(k * (levels / steps)) for k in range(steps)]
    return _to_zero(table.sigmas[entries])


def normal(table: NoiseTable, steps: int) -> Tensor:
    """Places at equal distances from the noisiest entry to the cleanest; then 0."""
    first, last = table.place_of(table.sigmas[[-1, 0]])
    if table.sigma_at(last) < CLOSE:
        return table.sigma_at(_places(first, last, steps + 1))
    return _to_zero(table.sigma_at(_places(first, last, steps)))


def sgm_uniform(table: NoiseTable, steps: int) -> Tensor:
    """As `normal` with one more step, but its last sigma is left out; then 0."""
    first, last = table.place_of(table.sigmas[[-1, 0]])
    return _to_zero(table.sigma_at(_places(first, last, steps + 1)[:-1]))


def karras(table: NoiseTable, steps: int) -> Tensor:
    """Equal distances in sigma^(1/7) between the ends of the table (Karras et al. 2022, eq. 5); then 0."""
    high, low = table.sigmas[[-1, 0]] ** (1 / 7)
    return _to_zero(_places(high, low, steps) ** 7)


COMFYUI: dict[str, Callable[[NoiseTable, int], Tensor]] = {
    "simple": simple,
    "normal": normal,
    "sgm_uniform": sgm_uniform,
    "karras": karras,
}
"""ComfyUI's schedulers by name: sigmas float64 [steps + 1], falling to 0."""


def _places(first: Tensor, last: Tensor, n: int) -> Tensor:
    return torch.linspace(float(first), float(last), n, dtype=torch.float64)


def _to_zero(sigmas: Tensor) -> Tensor:
    return torch.cat([sigmas, sigmas.new_zeros(1)])
