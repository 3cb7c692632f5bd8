"""Progress in the terminal: bars, or plain lines if the output is no terminal."""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, IO, Self

from rich import progress as rich_progress
from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TextColumn
from rich.text import Text

from halfstep.data import Data
from halfstep.errors import printable
from halfstep.methods.stages import Stage
from halfstep.progress import Progress
from halfstep.training.progress import ProgressCallback, TimeLeft
from halfstep.workflows.options import DataOptions

LINES = 20
"""Plain lines a stage at most."""
SOON = 2.0
"""Seconds after which a bar for few steps is drawn too."""
DAY = 86_400.0
"""Seconds of training beyond which a run says how to make it shorter."""
SURE = 5
"""Updates, and seconds, after which a run's speed is known."""
FULL, MORE = 92, 112
"""Width of a terminal with room for updates a second, and for the time left in all."""

ENDLESS = 10_000
"""Width of a file or a pipe."""


def first_process() -> bool:
    """Whether this process is the one that prints and writes."""
    return os.environ.get("RANK", "0") == "0"


class _Out:
    """A stream whose every failure (closed pipe or terminal, full disk) is a `BrokenPipeError`."""

    def __init__(self, stream: IO[str]):
        self._stream = stream

    def write(self, text: str) -> int:
        with _as_broken_pipe():
            return self._stream.write(text)

    def flush(self) -> None:
        with _as_broken_pipe():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def _as_broken_pipe() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BrokenPipeError(error.errno, error.strerror) from None


class Terminal(Console):
    """The console of a command.

    closed  the error of its closed output: raised once, after which the console is silent
    """

    closed: BrokenPipeError | None = None

    def on_broken_pipe(self) -> None:
        """Raise the error that rich caught; rich itself would end the process."""
        self.quiet = True
        error = sys.exception()
        self.closed = error if isinstance(error, BrokenPipeError) else BrokenPipeError()
        if threading.current_thread() is threading.main_thread():  # not in the bar's thread
            raise self.closed


def terminal() -> Terminal:
    """The console of a command; characters that its encoding lacks are printed as '?'.

    A file or a pipe has no width, and gets whole lines, unless COLUMNS says one.
    """
    with suppress(AttributeError, ValueError):
        sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    out: Any = _Out(sys.stdout) if sys.stdout is not None else None  # None: rich writes nowhere
    console = Terminal(
        file=out, quiet=not first_process(), highlight=False, markup=False, emoji=False
    )
    if not console.is_terminal and not os.environ.get("COLUMNS", "").isdigit():
        console.width = ENDLESS
    return console


def say(console: Console, label: str, text: object) -> None:
    """Print one line of a command's output, without markup."""
    console.print(f"{label:<10}{printable(str(text))}", markup=False, soft_wrap=True)


def span(seconds: float) -> str:
    """75 -> '1 min 15 s'."""
    minutes, whole = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {whole:02d} s" if minutes else f"{whole} s"


def too_long(seconds: float, updates: int = 0) -> str | None:
    """A sentence for training that takes more than a day, with the option that mends it; None for a shorter.

    updates  of a run of one stage; 0 for others
    """
    if seconds <= DAY:
        return None
    days = f"training takes about {seconds / DAY:,.1f} days at this speed"
    if updates:
        return f"{days}: --updates {max(int(updates * DAY / seconds), 1)} would take one day"
    return f"{days}: {DAY / seconds:.1%} of its --updates would take one day"


def figure(loss: float | None) -> str:
    """A loss in six characters or seven."""
    if loss is None:
        return "-" * 6
    return f"{loss:.4f}" if abs(loss) >= 1e-3 or loss != loss else f"{loss:.1e}"


class _FunctionColumn(ProgressColumn):
    """A column with the text that a function returns for a task."""

    def __init__(self, text_of: Callable[[Task], str]):
        super().__init__()
        self.text_of = text_of

    def render(self, task: Task) -> Text:
        return Text(self.text_of(task), no_wrap=True, overflow="ellipsis")


def _bar(console: Console, text_of: Callable[[Task], str]) -> rich_progress.Progress:
    """A line with name, bar, completed steps and a text; not shown if the console is no terminal."""
    return rich_progress.Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=_bar_width(console.width)),
        _FunctionColumn(lambda task: f"{int(task.completed):,}/{int(task.total or 0):,}"),
        _FunctionColumn(text_of),
        console=console,
        refresh_per_second=4,
        disable=not console.is_terminal,
    )


def _bar_width(width: int) -> int:
    """The width that the numbers beside the bar leave."""
    numbers = 72 + 10 * (width >= FULL) + 20 * (width >= MORE)
    return max(4, min(24, width - numbers))


class Bars(ProgressCallback):
    """Shows a run: a line a stage with loss, learning rate and time left.  Use it in a `with`.

    cost_after  cost of the stages that follow a stage, in forwards of a batch, for the time left in all
    opened      called once, before the first update
    """

    def __init__(
        self,
        console: Console,
        *,
        cost_after: Callable[[Stage], float] = lambda stage: 0,
        opened: Callable[[], None] = lambda: None,
    ):
        self.console, self.cost_after, self.opened = console, cost_after, opened
        self.began = self._warned = False
        self._time = TimeLeft()
        self._loss: float | None = None
        self._progress: rich_progress.Progress | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop drawing; the last line stays."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def begin(self, stage: Stage, update: int) -> None:
        self._open()
        self._stage, self._first, self._update = stage, update, update
        self._shown: int | None = None
        self._since, self._took = time.monotonic(), 0.0
        self._loss, self._rate, self._ahead = None, 0.0, self.cost_after(stage)
        self._price = stage.objective.forwards
        self._time.begin(self._since)
        self._progress = _bar(self.console, lambda task: self._numbers(self.console.width))
        self._progress.start()
        self._task = self._progress.add_task(stage.name, total=stage.updates, completed=update)

    def step(self, update: int, rate: float) -> None:
        if (error := getattr(self.console, "closed", None)) is not None:
            raise error
        self._update, self._rate = update, rate
        now = time.monotonic()
        self._took = now - self._since
        self._time.add(self._price, now)
        self._warn()
        if self._progress is not None:
            self._progress.update(self._task, completed=update)

    def measure(self, loss: float) -> None:
        self._loss = loss
        updates = self._stage.updates
        due = self._shown is None or self._update - self._shown >= -(-updates // LINES)
        due = due or self._update == updates
        if due and not self.console.is_terminal:
            self._shown = self._update
            line = f"{self._update:,}/{updates:,}  {self._numbers(FULL)}"
            self.console.print(f"{self._stage.name:<10}  {line}", markup=False, soft_wrap=True)

    def end(self, stage: Stage) -> None:
        self.close()

    def work(self, title: str) -> AbstractContextManager[Progress]:
        self._open()
        if self._progress is not None:  # between updates: the stage's own line goes on
            return super().work(title)
        return counting(self.console, title)

    def _open(self) -> None:
        if not self.began:
            self.began = True
            self.opened()

    def note(self, text: str) -> None:
        say(self.console, "note", text)

    def _numbers(self, width: int) -> str:
        """Loss, learning rate, updates a second and time left, as far as there is room."""
        parts = [f"loss {figure(self._loss)}", f"lr {self._rate:.1e}"]
        done, remaining = self._update - self._first, self._stage.updates - self._update
        if done and width >= FULL:
            parts.append(f"{done / max(self._took, 1e-9):.1f}/s")
        if not remaining:
            parts.append(f"in {span(self._took)}")
        elif (left := self._time.seconds(remaining * self._price)) is not None:
            parts.append(f"{span(left)} left")
            if self._ahead and width >= MORE:
                parts.append(f"{span(left + (self._time.seconds(self._ahead) or 0))} in all")
        return "  ".join(parts)

    def _warn(self) -> None:
        """A note, once, if the run takes more than a day: as soon as its speed is known."""
        if self._warned or self._update - self._first < SURE or self._took < SURE:
            return
        remaining = self._stage.updates - self._update
        whole = self._took + (self._time.seconds(remaining * self._price + self._ahead) or 0)
        self._warned = True
        if text := too_long(whole, 0 if self._ahead else self._stage.updates):
            self.note(text)


@dataclass(frozen=True)
class _Line:
    """Progress on a line, which is drawn once more than `few` steps are expected or take long."""

    console: Console
    bar: rich_progress.Progress
    task: rich_progress.TaskID
    few: int
    began: float = field(default_factory=time.monotonic)

    def expect(self, steps: int) -> None:
        total = (self.bar.tasks[0].total or 0) + steps
        self.bar.update(self.task, total=total)
        if total > self.few:
            self.bar.start()

    def advance(self, steps: int = 1) -> None:
        self.bar.advance(self.task, steps)
        if self.few and time.monotonic() - self.began > SOON:
            self.bar.start()

    def note(self, text: str) -> None:
        say(self.console, "note", text)


@contextmanager
def counting(console: Console, title: str, *, few: int = 0) -> Iterator[Progress]:
    """Show progress as a bar, whose total grows with the expected steps.

    few  number of steps up to which nothing is shown, unless they take more than `SOON`
    """

    def time_left(task: Task) -> str:
        if task.finished:
            return f"in {span(task.finished_time or 0)}"
        return "" if task.time_remaining is None else f"{span(task.time_remaining)} left"

    if not console.is_terminal and not few:
        console.print(title, markup=False, soft_wrap=True)
    bar = _bar(console, time_left)
    try:
        yield _Line(console, bar, bar.add_task(title, total=None), few)
    finally:
        bar.stop()


def reading(console: Console, name: str) -> AbstractContextManager[Progress]:
    """Show a bar while much is read, or slowly, and notes."""
    return counting(console, f"reading {name}", few=500)


def loading(console: Console, dataset: DataOptions) -> Data:
    """Load the data of the options, with a bar while much is read, or slowly."""
    with reading(console, dataset.data) as progress:
        return dataset.load(progress)
