"""Noise schedules.  One convention everywhere in halfstep:

    x_t = alpha(t) * x0 + sigma(t) * eps,    eps ~ N(0, I),    0 <= t <= 1,

with data at t = 0 and noise at t = 1.  `logsnr` is log(alpha^2 / sigma^2): it falls as t rises.

A schedule is a value: `at(t)` takes any shape of t and keeps its dtype; `time(logsnr)` is its inverse, in
[0, 1] also where the log-SNR is infinite.  Both are computed in float32 at least.
"""

from halfstep.diffusion.schedules.beta_table import BetaTable
from halfstep.diffusion.schedules.closed_form import Cosine, Karras, RectifiedFlow, VPLinear
from halfstep.diffusion.schedules.level import arriving, Level, Schedule

__all__ = [
    "SCHEDULES",
    "BetaTable",
    "Cosine",
    "Karras",
    "Level",
    "RectifiedFlow",
    "Schedule",
    "VPLinear",
    "arriving",
]

SCHEDULES: dict[
    str, type[Cosine] | type[VPLinear] | type[RectifiedFlow] | type[Karras] | type[BetaTable]
] = {
    "cosine": Cosine,
    "vp-linear": VPLinear,
    "rectified-flow": RectifiedFlow,
    "karras": Karras,
    "beta-table": BetaTable,
}
