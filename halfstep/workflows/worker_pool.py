"""Run calls in several processes of one thread each."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import active_children, get_context
from typing import TypeVar

import torch

from halfstep.errors import Stopped
from halfstep.training.signals import stopping, StopRequest

T = TypeVar("T")
MALLOC_VARIABLES = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
"""Variables that glibc reads when a process starts: large tensors then reuse memory instead of requesting it
at every update, which made an update of a small student 1.5 times as fast (see LOG.md)."""
POLL = 0.2
"""Seconds between looks for a signal to stop."""


def in_processes(calls: Sequence[Callable[[], T]], workers: int) -> Iterator[T]:
    """Yield the result of each call, in order; each runs in one of so many processes.

    The calls and their results are pickled.  After Ctrl-C, SIGTERM or an error the processes are asked to
    stop; runs save themselves.

    `Stopped` after Ctrl-C or SIGTERM; a call's own exception.
    """
    with stopping() as request, _pool(workers) as executor:
        for future in [executor.submit(call) for call in calls]:
            yield _result(future, request)


def _result(future: Future[T], request: StopRequest) -> T:
    while True:
        try:
            return future.result(timeout=POLL)
        except TimeoutError:
            if future.done():  # the call's own
                raise
            if request.is_set():
                raise Stopped("stopped; the same command goes on") from None


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """The processes; those that still work are asked to stop if the block fails."""
    before = {name: os.environ.get(name) for name in MALLOC_VARIABLES}
    for name in MALLOC_VARIABLES:
        os.environ.setdefault(name, str(2**32))
    context = get_context("spawn")
    executor = ProcessPoolExecutor(
        workers, context, initializer=torch.set_num_threads, initargs=(1,)
    )
    try:
        yield executor
    except BaseException:
        for process in active_children():
            process.terminate()  # SIGTERM, at which a run saves
        raise
    finally:
        executor.shutdown(cancel_futures=True)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
