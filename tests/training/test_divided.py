"""Work that is divided among processes: dealt out in order, collected by the first, errors told to all."""

from functools import partial

import pytest
import torch

from halfstep.division import ALONE
from halfstep.errors import DataError, HalfstepError
from halfstep.training.distributed import Processes
from halfstep.training.divided import Divided
from tests.support.group import in_threads
from tests.support.progress import Ledger


class Table:
    """An object that every process has itself; it cannot be sent."""

    def __init__(self, rank):
        self.rank, self.rows = rank, []

    def __reduce__(self):
        raise AssertionError("a shared object is not sent")

    def square(self, item, progress):
        self.rows.append(item)
        progress.advance(item)
        return self.rank, item**2


def squares(processes, n, ledger=None):
    """Squares of n numbers, as the first process has them, and the numbers that this one squared."""
    division, table, found = Divided(processes), Table(processes.rank), []

    def act():
        progress = [ledger] if ledger else []
        found.extend(division.map(table.square, iter(range(1, n + 1)), *progress))
        return "led"

    return division.lead(act, table), found, table.rows


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("n", [0, 1, 2, 3, 7])
def test_items_are_dealt_in_turn_and_collected_in_order_by_the_first(world, n):
    ledger = Ledger()
    ledger.expect(n * (n + 1) // 2)
    results = in_threads(partial(squares, n=n, ledger=ledger), world)
    assert [led for led, _, _ in results] == ["led"] * world
    assert results[0][1] == [((k - 1) % world, k * k) for k in range(1, n + 1)]
    assert all(found == [] for _, found, _ in results[1:])
    for rank, (_, _, rows) in enumerate(results):
        assert rows == list(range(1 + rank, n + 1, world))
    assert ledger.steps == ledger.total, "steps of other processes count"


def test_one_process_does_all_of_it():
    for division in (ALONE, Divided(Processes("cpu"))):
        table = Table(0)
        found = division.lead(lambda: list(division.map(table.square, [1, 2, 3])), table)  # noqa: B023
        assert found == [(0, 1), (0, 4), (0, 9)]


def failing(item, progress, *, at, error):
    if item == at:
        raise error
    return item


@pytest.mark.parametrize("at", [0, 1, 2, 5])
@pytest.mark.parametrize("error", [DataError("image 7 is damaged"), KeyError("fault")])
def test_an_error_of_one_is_raised_by_all_who_can_then_go_on(at, error):
    def act(processes):
        division = Divided(processes)
        with pytest.raises(Exception, match=str(error.args[0])) as caught:
            division.lead(
                lambda: list(division.map(partial(failing, at=at, error=error), range(6)))
            )
        again = division.lead(
            lambda: list(division.map(partial(failing, at=9, error=error), range(3)))
        )
        return type(caught.value), again

    kinds = in_threads(act, 2)
    assert [again for _, again in kinds] == [[0, 1, 2]] * 2
    first, second = (kind for kind, _ in kinds)
    if isinstance(error, HalfstepError):
        assert first is second is DataError
    else:  # the first process's own error stays what it is
        assert second is HalfstepError and first is (HalfstepError if at % 2 else KeyError)


def test_an_error_of_the_first_alone_ends_all():
    def act(processes):
        def lead():
            raise DataError("no data")

        with pytest.raises(DataError, match="no data"):
            Divided(processes).lead(lead)
        return True

    assert in_threads(act, 3) == [True] * 3


def test_of_a_view_no_more_is_sent_than_it_shows():
    division = Divided(Processes("cpu"))
    whole = torch.arange(100_000.0)
    packed = division._packed(whole[10:14])
    assert len(packed) < 2000
    assert torch.equal(division._unpacked(packed), whole[10:14])
    assert len(division._packed(whole)) > 400_000
