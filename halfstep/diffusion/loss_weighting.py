"""Loss weights: functions of the two per-sample errors, so that nothing divides by sigma.

x_err and eps_err are the mean squared errors of x0 and of eps over one sample, shape [B].  They are the
same error on two scales: eps_err = SNR * x_err (Salimans & Ho 2022, section 4).
"""

from collections.abc import Callable

import torch
from torch import Tensor

Weighting = Callable[[Tensor, Tensor], Tensor]


def constant(x_err: Tensor, eps_err: Tensor) -> Tensor:
    """Weight 1 on the x0 error."""
    return x_err


def snr(x_err: Tensor, eps_err: Tensor) -> Tensor:
    """Weight SNR: the eps error.  Vanishes at SNR 0."""
    return eps_err


def truncated_snr(x_err: Tensor, eps_err: Tensor) -> Tensor:
    """Weight max(SNR, 1): the larger of the two errors of each sample (Salimans & Ho 2022, eq. 9)."""
    return torch.maximum(x_err, eps_err)


def snr_plus_one(x_err: Tensor, eps_err: Tensor) -> Tensor:
    """Weight SNR + 1: the v error of a variance-preserving schedule (Salimans & Ho 2022, eq. 10)."""
    return x_err + eps_err


def min_snr(x_err: Tensor, eps_err: Tensor, *, gamma: float = 5.0) -> Tensor:
    """Weight min(SNR, gamma) (Hang et al. 2023, eq. 8, gamma = 5).  Vanishes at SNR 0."""
    return torch.minimum(gamma * x_err, eps_err)


WEIGHTINGS: dict[str, Weighting] = {
    "constant": constant,
    "snr": snr,
    "truncated-snr": truncated_snr,
    "snr+1": snr_plus_one,
    "min-snr": min_snr,
}


def vanishes(weighting: Weighting) -> bool:
    """Whether an x0 error costs nothing at SNR 0, where the eps error is always 0."""
    one = torch.ones(1)
    return float(weighting(one, 0 * one)) == 0.0


def forgets_eps(weighting: Weighting) -> bool:
    """Whether an eps error costs nothing at infinite SNR, where the x0 error is always 0."""
    one = torch.ones(1)
    return float(weighting(0 * one, one)) == 0.0
