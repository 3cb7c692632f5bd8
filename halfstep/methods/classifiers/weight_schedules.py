"""Weights of terms, constant or linear in the share of a stage's updates."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt, Le

from halfstep.config.validate import is_valid, shown, Validated
from halfstep.errors import ConfigError


@dataclass(frozen=True)
class Linear(Validated):
    """A weight that goes from `start` to `stop` over the first `over` of a stage's updates, then stays."""

    start: float
    stop: float
    over: Annotated[float, Gt(0), Le(1)] = 1.0

    def at(self, done: float) -> float:
        """The weight when this share of the updates is done."""
        share = min(done / self.over, 1.0)
        return self.start + (self.stop - self.start) * share


Weight = float | Linear


def warmup(weight: float, over: float = 0.1) -> Linear:
    """A weight that rises from 0 over the first `over` of the updates (Zhao et al. 2022)."""
    return Linear(0.0, weight, over)


def weight_at(weight: Weight, done: float) -> float:
    """The weight when this share of the updates is done."""
    return weight.at(done) if isinstance(weight, Linear) else float(weight)


def checked(weight: Weight, name: str) -> None:
    """`ConfigError` for a weight that is negative or not a number at any time."""
    for value in (weight.start, weight.stop) if isinstance(weight, Linear) else (weight,):
        if not is_valid(value, float) or value < 0:
            raise ConfigError(
                f"the weight of the term '{name}' is {shown(value)}: write a finite number, 0 or more"
            )


def is_zero(weight: Weight) -> bool:
    """Whether a weight is 0 all the time."""
    return not any((weight.start, weight.stop) if isinstance(weight, Linear) else (weight,))


def parsed(text: str) -> Weight:
    """'0.9', '0.01..0' (over all updates) or '0..1@0.2' (over the first fifth) as a weight."""
    ends, _, over = text.partition("@")
    start, dots, stop = ends.partition("..")
    try:
        if not dots and not over:
            return float(start)
        return Linear(float(start), float(stop), float(over or 1))
    except ConfigError:
        raise
    except ValueError:
        raise ConfigError(
            f"'{text}' is not a weight: write a number, or 0.01..0 for one that changes over all updates, or "
            "0..1@0.2 over the first fifth of them"
        ) from None
