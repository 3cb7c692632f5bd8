"""Progress: a bar for everything that takes over two seconds, plain lines where nobody looks."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from halfstep.cli.options import Source
from halfstep.data import Dataset, load
from halfstep.methods.base import Stage


def bars(console: Console, *extra: str) -> Progress:
    """A rich progress display with these fields of each task besides."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        *(TextColumn(field) for field in extra),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )


class Bars:
    """Shows a run: a bar a stage with loss, learning rate, updates a second and time left."""

    def __init__(self, console: Console):
        self.console = console
        self._progress: Progress | None = None

    def begin(self, stage: Stage, update: int) -> None:
        self._loss, self._name = float("nan"), stage.name
        self._progress = bars(
            self.console, "loss {task.fields[loss]:.4f}  rate {task.fields[rate]:.1e}"
        )
        self._progress.start()
        self._task = self._progress.add_task(
            stage.name, total=stage.updates, completed=update, loss=self._loss, rate=0.0
        )

    def step(self, update: int, rate: float) -> None:
        if self._progress is not None:
            self._progress.update(self._task, completed=update, rate=rate, loss=self._loss)

    def measure(self, loss: float) -> None:
        self._loss = loss
        if not self.console.is_terminal and self._progress is not None:
            task = self._progress.tasks[0]
            self.console.print(
                f"{self._name}  update {int(task.completed):,}/{int(task.total or 0):,}  loss {loss:.4f}"
            )

    def end(self, stage: Stage) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def note(self, text: str) -> None:
        self.console.print(f"[yellow]note[/yellow] {text}")


@contextmanager
def counting(console: Console, what: str, total: int) -> Iterator[Callable[[], None]]:
    """A bar that a callback moves by one."""
    with bars(console) as progress:
        task = progress.add_task(what, total=total)
        yield lambda: progress.advance(task)


def loading(console: Console, source: Source) -> Dataset:
    """The data that the options name, with a bar while a folder is read."""
    with bars(console) as progress:
        task = progress.add_task(f"reading {source.data}", total=None, visible=False)

        def show(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total, visible=total > 500)

        return load(
            source.data,
            size=source.size,
            channels=source.channels,
            flip=source.flip,
            progress=show,
        )
