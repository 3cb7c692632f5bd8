"""DDIM inversion: from data to the noise that sampling turns back into it (Song et al. 2021, section 4.3)."""

from itertools import pairwise

import torch
from torch import Tensor

from halfstep.batch import Cond
from halfstep.diffusion.denoiser import Denoises, Teacher
from halfstep.diffusion.samplers.sample import noise_of, wide
from halfstep.diffusion.time_grids import checked, on_schedule, Times
from halfstep.errors import ConfigError
from halfstep.pixels import as_floats
from halfstep.progress import Progress, SILENT


@torch.no_grad()
def encode(
    denoiser: Denoises,
    x0: Tensor,
    times: Times,
    *,
    cond: Cond | None = None,
    progress: Progress = SILENT,
) -> Tensor:
    """Encode data as the noise that `sample` turns into it: DDIM steps from times[-1] to times[0].

    At t = 0 it starts from the level `schedule.at(0)`. Nothing is clipped: the eps of a clipped x0 would
    be the clipping error divided by sigma.

    Args:
        denoiser: a denoiser, guided or not.
        x0: float [B, ...] data, taken as x at times[-1].
        times: as for `sample`, noise first.
        cond: the conditions, one row a sample, or None.
        progress: advances with every step.

    Returns:
        float [B, ...], unit noise.

    Raises:
        ConfigError: a network whose output does not determine eps at the data's end of the grid.
    """
    schedule, x0 = denoiser.schedule, as_floats(x0)
    on_schedule(checked(times), schedule)
    progress.expect(len(times) - 1)
    x = x0
    for t_from, t_to in pairwise(reversed(times)):
        t = torch.full(x.shape[:1], t_from, device=x.device, dtype=wide(x))
        pred = denoiser(x, t, cond)
        to = schedule.at(torch.tensor(t_to, dtype=torch.float64))
        x = to.mix(pred.x0, pred.eps).to(x0.dtype)
        progress.advance()
    return noise_of(schedule, x, times[0])


def refuse_blind_to_noise(denoiser: Teacher, t: float) -> None:
    """`ConfigError` for an x0 network where encoding starts at a level with almost no noise."""
    level = denoiser.schedule.at(torch.tensor(t, dtype=torch.float64))
    if denoiser.parameterisation.blind_to_noise and level.sigma < 0.1 * level.alpha:
        worse = float(level.alpha / level.sigma)
        raise ConfigError(
            f"a network that predicts x0 cannot encode from t = {t:g}: its eps there is its error times "
            f"{worse:,.0f}.  Turn it into one that predicts v with 'halfstep distill reparameterise', or "
            "give times that end higher"
        )
