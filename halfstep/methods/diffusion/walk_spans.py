"""Spans of kept walks: what one student that is told where its step ends learns from them."""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from halfstep.batch import Cond
from halfstep.diffusion.time_grids import Times
from halfstep.methods.stages import StagePlan

FLOW_MAP = "flow-map"


def of_one_student(plan: Sequence[StagePlan], points: Times) -> StagePlan:
    """The one stage of a student for all numbers of steps of these stages, with all their updates.

    Args:
        plan: the stages of a student for each number, the most steps first.
        points: the grid of the walks' kept points, which the first of them steps on.
    """
    return replace(
        plan[0],
        name=FLOW_MAP,
        sampler=FLOW_MAP,
        updates=sum(stage.updates for stage in plan),
        times=(),
        grids=tuple(stage.times for stage in plan),
        fine_times=points,
    )


def even_spans(steps: int, fewest: int) -> tuple[tuple[int, int], ...]:
    """Start and end of spans of 2^k of so many steps, as many of each length, evenly over their starts.

    Args:
        steps: `fewest` times a power of two.
        fewest: the number of spans of the greatest length.
    """
    spans, longest = list[tuple[int, int]](), (steps // fewest).bit_length() - 1
    for k in range(longest + 1):
        starts = steps >> k
        spans += [
            ((n * starts // steps) << k, ((n * starts // steps) + 1) << k) for n in range(steps)
        ]
    return tuple(spans)


def toward(end: Tensor, cond: Cond | None) -> Cond:
    """The conditions with the time where the step ends."""
    return replace(cond or Cond(), t_end=end)
