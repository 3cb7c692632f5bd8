"""Whether what is asked for could be held at all, estimated before anything is made."""

from collections.abc import Iterable
from functools import cache
from math import prod

import psutil

from halfstep.errors import ConfigError

MANY = 10**9


@cache
def memory() -> int:
    """Bytes of this machine's memory, in use or not."""
    return int(psutil.virtual_memory().total)


def refuse_too_large(what: str, shape: Iterable[int], instead: str, *, size: int = 4) -> None:
    """`ConfigError` where values of this shape, of `size` bytes each, are more than all memory.

    what  is too large, as a sentence begins; it names the option
    """
    needed = prod(shape, start=size)
    if needed > memory():
        raise ConfigError(
            f"{what} would take {min(needed >> 30, MANY):,} GiB or more, and this machine has "
            f"{memory() >> 30:,}: {instead}"
        )
