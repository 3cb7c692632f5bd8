"""Share a budget of forwards out to the stages of a method."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil

from halfstep.errors import ConfigError

PRECISE = 200
"""Updates of the dearest stage that the smallest budget holds: one more or less is half a percent."""


@dataclass(frozen=True)
class StageWork:
    """The work of a stage, as its method plans it without a budget.

    updates  by which the budget is shared out
    price    of an update, in forwards of the whole batch; it may be a mean over the updates
    """

    updates: int
    price: float

    @property
    def exact_price(self) -> Fraction:
        """The price without rounding."""
        return Fraction(self.price)


def least_budget(stages: Sequence[StageWork], once: int = 0) -> int:
    """The smallest budget that gives every stage an update, and is met to within 1 %.

    Args:
        stages: those of a method.
        once: forwards that are spent whatever the updates, such as the teacher's walks.
    """
    trained = [stage for stage in stages if stage.updates]
    if not trained:
        return once
    whole = sum(stage.updates * stage.exact_price for stage in trained)
    fewest = min(stage.updates for stage in trained)
    dearest = max(stage.exact_price for stage in trained)
    return once + max(ceil(whole / fewest), ceil(PRECISE * dearest))


def updates_within(
    stages: Sequence[StageWork], forwards: int, once: int = 0, *, name: str = "the method"
) -> list[int]:
    """The updates of each stage for at most so many forwards, in the shares that the method plans.

    Shares are rounded down; the forwards that are left buy an update for each stage in turn, the largest
    remainder first.

    Args:
        stages: those of a method; one without updates gets none.
        forwards: the budget.
        once: forwards that are spent whatever the updates, such as the teacher's walks.
        name: of the method, for an error.

    Raises:
        ConfigError: a budget that is too small, with the smallest that works.
    """
    if forwards < (least := least_budget(stages, once)):
        raise ConfigError(
            f"{name} cannot be trained within 1 % of a budget of {forwards:,} forwards: write {least:,} or "
            f"more (command line: --budget {least})"
        )
    whole = sum(stage.updates * stage.exact_price for stage in stages)
    if not whole:
        return [0 for _ in stages]
    scale = (forwards - once) / whole
    shares = [stage.updates * scale for stage in stages]
    updates = [int(share) for share in shares]
    left = forwards - once - sum(n * s.exact_price for n, s in zip(updates, stages, strict=True))
    for k in sorted(range(len(stages)), key=lambda k: updates[k] - shares[k]):
        if stages[k].updates and stages[k].exact_price <= left:
            updates[k] += 1
            left -= stages[k].exact_price
    return updates


def largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest number from 1 to `most` that fits, where all smaller ones do; 1 if none does.

    Args:
        fits: whether a number does.
        most: the largest to try.
    """
    low, high = 1, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
