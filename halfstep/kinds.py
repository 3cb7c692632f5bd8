"""Names of `config.validate` for the files that still import them from here."""

from typing import Any

from annotated_types import Ge as at_least, Gt as above, Le as at_most, Lt as below  # noqa: N813

from halfstep.config.validate import (
    Count,
    CountOrNone,
    describe as word,
    is_valid as fits,
    NotNegative,
    numbers,
    Positive,
    Seed,
    Share,
    shown,
    Smoothing,
    Updates,
    validate as held,
    Validated,
)

__all__ = [
    "Count", "CountOrNone", "NotNegative", "Positive", "Seed", "Share", "Smoothing", "Updates",
    "above", "at_least", "at_most", "below", "fits", "held", "hold_to_kinds", "numbers", "shown", "word",
]  # fmt: skip


def hold_to_kinds(options: Any) -> None:
    Validated.__post_init__(options)
