"""Fine steps that grow in a stage: few and long at first, evenly on a log scale (Heek et al. 2024)."""

from dataclasses import dataclass
from math import exp, floor, log

from halfstep.diffusion.time_grids import Times


@dataclass(frozen=True)
class Ramp:
    """Fine grids that grow in a stage, evenly on a log scale.

    steps  those of the first update
    """

    steps: int

    def times(self, segments: int, fine: Times, done: float, levels: int | None = None) -> Times:
        """The grid when this share of the stage is done: a whole number of steps a segment.

        Segments end where those of the last grid do, whose times are interpolated between: a grid of the same
        name and fewer steps may end them elsewhere, as its last step but one is at a fixed time.

        segments  of the student
        fine      the last grid
        levels    of the schedule's table: where all times of `fine` are levels, so are these
        """
        most, least = (len(fine) - 1) // segments, self.steps / segments
        length = round(exp(log(least) + done * (log(most) - log(least))))
        places = [divmod(k * most, length) for k in range(segments * length)]
        inner = [fine[i] + (fine[i + 1] - fine[i]) * part / length for i, part in places]
        if levels and all(abs(t * levels - round(t * levels)) < 1e-6 for t in fine):
            # These are a level apart or more, and so they stay.
            inner = [floor(t * levels + 0.5) / levels for t in inner]
        return (*inner, fine[-1])
