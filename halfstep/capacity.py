"""Refuse sizes beyond this machine's memory before anything is allocated."""

from collections.abc import Iterable
from functools import cache
from math import prod

import psutil

from halfstep.errors import ConfigError

MANY = 10**9


@cache
def memory() -> int:
    """This machine's memory in bytes, in use or not."""
    return int(psutil.virtual_memory().total)


def refuse_too_large(what: str, shape: Iterable[int], instead: str, *, size: int = 4) -> None:
    """`ConfigError` if values of this shape, of `size` bytes each, exceed all memory.

    what     subject of the error's sentence; it names the option
    instead  what to write instead
    """
    needed = prod(shape, start=size)
    if needed > memory():
        raise ConfigError(
            f"{what} would take {min(needed >> 30, MANY):,} GiB or more, and this machine has "
            f"{memory() >> 30:,}: {instead}"
        )
