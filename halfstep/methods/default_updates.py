"""The default batch and updates of a method, from the number of its data.

docs/how-to/own-data.md has the table.
"""

from halfstep.data import Data, NoData

BATCHES = 32, 128
PASSES, UPDATES = 200, (2_000, 300_000)
"""Passes of a teacher over the data, and its fewest and most updates."""
PAPER = 800_000
"""The updates of Salimans & Ho's teacher, by which a method plans that was not told its data's."""
WITHOUT_DATA = 50_000
"""Walks from noise count as the training images of CIFAR-10, the data of Salimans & Ho."""


def number_of(data: Data) -> int:
    """The number of samples that default sizes follow from; of walks from noise 50,000."""
    return WITHOUT_DATA if isinstance(data, NoData) else len(data)


def default_batch(n: int) -> int:
    """The largest power of 2 that is at most an eighth of the data, from 32 to 128."""
    least, most = BATCHES
    power = 1 << max(n // 8, 1).bit_length() - 1
    return min(max(power, least), most)


def default_updates(n: int, batch: int) -> int:
    """A teacher's: 200 passes over the data, in two digits, from 2,000 to 300,000."""
    least, most = UPDATES
    return min(max(share(PASSES * n, batch), least), most)


def halving_updates(teacher: int) -> int:
    """A sixteenth of the teacher's updates: 50,000 of 800,000 in Salimans & Ho (2022)."""
    return share(teacher, 16)


def every_time_updates(teacher: int) -> int:
    """A quarter of the teacher's updates, for a stage that learns at every time.

    It learns another input, output or network, while a halving starts as its teacher: four halvings' worth,
    as the preset digits-shrink has three to five.
    """
    return share(teacher, 4)


def share(count: int, of: int) -> int:
    """count / of, rounded up to two digits."""
    part = -(-count // of)
    unit: int = 10 ** max(len(str(part)) - 2, 0)
    return -(-part // unit) * unit
