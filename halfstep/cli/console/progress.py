"""What the terminal shows: a bar for what takes over two seconds, plain lines where nobody looks."""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, IO, Self

from rich import progress as rich_progress
from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TextColumn
from rich.text import Text

from halfstep.data import Data
from halfstep.errors import printable
from halfstep.methods.base import Stage
from halfstep.progress import Progress
from halfstep.training.progress import ProgressCallback
from halfstep.workflows.options import DataOptions

LINES = 20
"""Plain lines a stage at most."""
FULL, MORE = 92, 112
"""Columns from which there is room for updates a second, and for the time left in all."""


def first_process() -> bool:
    """Whether this process is the one that speaks and writes; the others are silent."""
    return os.environ.get("RANK", "0") == "0"


class _Out:
    """A stream of which every failure is that nobody reads it: a pipe, a terminal, a disk that is full."""

    def __init__(self, stream: IO[str]):
        self._stream = stream

    def write(self, text: str) -> int:
        with _nobody_reads():
            return self._stream.write(text)

    def flush(self) -> None:
        with _nobody_reads():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def _nobody_reads() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BrokenPipeError(error.errno, error.strerror) from None


class Terminal(Console):
    """The console of a command.

    gone  why nobody reads it any more: raised once where something is printed, after which all is silent
    """

    gone: BrokenPipeError | None = None

    def on_broken_pipe(self) -> None:
        """Raise what rich caught; rich itself would end the process, whatever that is doing."""
        self.quiet = True
        error = sys.exception()
        self.gone = error if isinstance(error, BrokenPipeError) else BrokenPipeError()
        if threading.current_thread() is threading.main_thread():  # and not the bar's own
            raise self.gone


def terminal() -> Terminal:
    """The console of a command; letters that its encoding has not are printed as '?'."""
    with suppress(AttributeError, ValueError):
        sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    out: Any = _Out(sys.stdout) if sys.stdout is not None else None  # closed: rich writes nowhere
    return Terminal(file=out, quiet=not first_process(), highlight=False, markup=False, emoji=False)


def say(console: Console, label: str, text: object) -> None:
    """One line of what a command has to say; paths and names are printed as they are."""
    console.print(f"{label:<10}{printable(str(text))}", markup=False, soft_wrap=True)


def span(seconds: float) -> str:
    """75 -> '1 min 15 s'."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def figure(loss: float | None) -> str:
    """A loss in six characters or seven."""
    if loss is None:
        return "-" * 6
    return f"{loss:.4f}" if abs(loss) >= 1e-3 or loss != loss else f"{loss:.1e}"


class _Told(ProgressColumn):
    """What `tell` says when the line is drawn."""

    def __init__(self, tell: Callable[[Task], str]):
        super().__init__()
        self.tell = tell

    def render(self, task: Task) -> Text:
        return Text(self.tell(task), no_wrap=True, overflow="ellipsis")


def _bar(console: Console, tell: Callable[[Task], str]) -> rich_progress.Progress:
    """A line: what, a bar, done of all, and what `tell` says; nothing where nobody looks."""
    return rich_progress.Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=_bar_width(console.width)),
        _Told(lambda task: f"{int(task.completed):,}/{int(task.total or 0):,}"),
        _Told(tell),
        console=console,
        refresh_per_second=4,
        disable=not console.is_terminal,
    )


def _bar_width(width: int) -> int:
    """What the numbers beside it leave, at their longest."""
    numbers = 72 + 10 * (width >= FULL) + 20 * (width >= MORE)
    return max(4, min(24, width - numbers))


class Bars(ProgressCallback):
    """Shows a run: a line a stage with loss, learning rate and time left.  Use it in a `with`.

    updates_after  updates of the stages that follow a stage, for the time left in all
    opened         called once, before the first update
    """

    def __init__(
        self,
        console: Console,
        *,
        updates_after: Callable[[Stage], int] = lambda stage: 0,
        opened: Callable[[], None] = lambda: None,
    ):
        self.console, self.updates_after, self.opened = console, updates_after, opened
        self.began = False
        self._loss: float | None = None
        self._progress: rich_progress.Progress | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the line as it is, and the terminal to others."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def begin(self, stage: Stage, update: int) -> None:
        if not self.began:
            self.began = True
            self.opened()
        self._stage, self._first, self._update, self._shown = stage, update, update, update
        self._since, self._took = time.monotonic(), 0.0
        self._loss, self._rate, self._ahead = None, 0.0, self.updates_after(stage)
        self._progress = _bar(self.console, self._told)
        self._progress.start()
        self._task = self._progress.add_task(stage.name, total=stage.updates, completed=update)

    def step(self, update: int, rate: float) -> None:
        self._update, self._rate = update, rate
        self._took = time.monotonic() - self._since
        if (gone := getattr(self.console, "gone", None)) is not None:
            raise gone
        if self._progress is not None:
            self._progress.update(self._task, completed=update)

    def measure(self, loss: float) -> None:
        self._loss = loss
        updates = self._stage.updates
        due = self._update - self._shown >= -(-updates // LINES) or self._update == updates
        if due and not self.console.is_terminal:
            self._shown = self._update
            line = f"{self._update:,}/{updates:,}  {self._numbers(FULL)}"
            self.console.print(f"{self._stage.name:<10}  {line}", markup=False, soft_wrap=True)

    def end(self, stage: Stage) -> None:
        self.close()

    def note(self, text: str) -> None:
        say(self.console, "note", text)

    def _told(self, task: Task) -> str:
        return self._numbers(self.console.width)

    def _numbers(self, width: int) -> str:
        """Loss, learning rate, updates a second and time left, as far as there is room."""
        parts = [f"loss {figure(self._loss)}", f"lr {self._rate:.1e}"]
        done, left = self._update - self._first, self._stage.updates - self._update
        if done and width >= FULL:
            parts.append(f"{done / max(self._took, 1e-9):.1f}/s")
        if not left:
            parts.append(f"in {span(self._took)}")
        elif done:
            each = self._took / done
            parts.append(f"{span(left * each)} left")
            if self._ahead and width >= MORE:
                parts.append(f"{span((left + self._ahead) * each)} in all")
        return "  ".join(parts)


@dataclass(frozen=True)
class _Line:
    """Progress on a line, which is drawn once more than `few` steps are expected."""

    console: Console
    bar: rich_progress.Progress
    task: rich_progress.TaskID
    few: int

    def expect(self, steps: int) -> None:
        total = (self.bar.tasks[0].total or 0) + steps
        self.bar.update(self.task, total=total)
        if total > self.few:
            self.bar.start()

    def advance(self, steps: int = 1) -> None:
        self.bar.advance(self.task, steps)

    def note(self, text: str) -> None:
        say(self.console, "note", text)


@contextmanager
def counting(console: Console, what: str, *, few: int = 0) -> Iterator[Progress]:
    """A bar, whose total grows with what is expected.

    few  steps up to which nothing is shown
    """

    def tell(task: Task) -> str:
        if task.finished:
            return f"in {span(task.finished_time or 0)}"
        return "" if task.time_remaining is None else f"{span(task.time_remaining)} left"

    if not console.is_terminal and not few:
        console.print(what, markup=False, soft_wrap=True)
    bar = _bar(console, tell)
    try:
        yield _Line(console, bar, bar.add_task(what, total=None), few)
    finally:
        bar.stop()


def reading(console: Console, name: str) -> AbstractContextManager[Progress]:
    """A bar while a large folder is read, and otherwise nothing but notes."""
    return counting(console, f"reading {name}", few=500)


def loading(console: Console, dataset: DataOptions) -> Data:
    """The data that the options name, with a bar while a large folder is read."""
    with reading(console, dataset.data) as progress:
        return dataset.load(progress)
