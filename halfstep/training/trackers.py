"""Trackers that show a run as it goes on: TensorBoard, Weights & Biases, Trackio; accelerate starts them."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from halfstep.config import JsonObject
from halfstep.errors import ConfigError, unknown
from halfstep.pictures import Picture
from halfstep.training.distributed import start_tracker

TRACKERS = ("tensorboard", "trackio", "wandb")
PROJECT = "halfstep"
"""The project of wandb and trackio; WANDB_PROJECT and TRACKIO_PROJECT name another."""
Values = Mapping[str, float]
"""Numbers by name, as trackers take them."""


def check_trackers(names: Sequence[str]) -> None:
    """`ConfigError` for a tracker that does not exist, or whose package is not installed."""
    for name in names:
        if name not in TRACKERS:
            raise unknown("tracker", name, TRACKERS)
    for name in names:
        spec = find_spec(name)
        if (
            spec is None or spec.origin is None
        ):  # a folder of this name, as wandb makes, is no package
            raise ConfigError(
                f"the tracker '{name}' needs the package {name}, which is not installed: pip install "
                f"'halfstep[track]', or leave {name} out"
            )


class Trackers:
    """The trackers of a run.  One that fails as the run goes on is left out from then on, with a note.

    names    any of `TRACKERS`
    run      the run's folder, where TensorBoard and wandb write
    id       the run's id: a run that goes on is the same one of wandb
    options  of the run, as wandb and trackio list them
    tell     called with a sentence that the user should know
    """

    def __init__(
        self,
        names: Sequence[str],
        run: Path,
        id: str,
        options: JsonObject,
        tell: Callable[[str], object],
    ):
        self.names, self.run, self.id = tuple(dict.fromkeys(names)), run, id
        self.options, self.tell = options, tell
        self._started: dict[str, Any] | None = None

    def start(self, step: int) -> None:
        """Start them, unless they are; `ConfigError` for one that cannot start.

        step  number of updates that are done, over all stages
        """
        if self._started is not None:
            return
        self._started = {}
        for name in self.names:
            try:
                with _silent():
                    self._started[name] = self._start(name, step)
            except Exception as error:
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                offline = ", or set WANDB_MODE=offline" if name == "wandb" else ""
                raise ConfigError(
                    f"the tracker '{name}' could not start ({reason}): mend that{offline}, or leave "
                    f"{name} out of --log"
                ) from None
            if name == "wandb" and not self._started[name].run.offline:
                self.tell(f"wandb shows this run at {self._started[name].run.url}")

    def _start(self, name: str, step: int) -> Any:
        if name == "tensorboard":
            # Lines that a crash came after are written again: TensorBoard hides the first ones.
            purge = step + 1 if step else None
            return start_tracker(name, name, logging_dir=self.run, purge_step=purge)
        title = self.run.resolve().name
        if name == "trackio":
            project = os.environ.get("TRACKIO_PROJECT", PROJECT)
            return start_tracker(
                name, project, name=f"{title}-{self.id[:8]}", config=self.options, resume="allow",
                embed=False,
            )  # fmt: skip
        import wandb

        return start_tracker(
            name, os.environ.get("WANDB_PROJECT", PROJECT), name=title, id=self.id, resume="allow",
            dir=str(self.run), config=self.options,
            settings=wandb.Settings(silent=True, console="off"),
        )  # fmt: skip

    def log(self, values: Values, step: int) -> None:
        """Log numbers at this number of updates."""
        for name, tracker in self._each():
            with self._leaving_out(name):
                tracker.log(dict(values), step=step)

    def show(self, title: str, picture: Picture, step: int) -> None:
        """Log a picture at this number of updates."""
        for name, tracker in self._each():
            with self._leaving_out(name):
                if name == "tensorboard":
                    tracker.log_images({title: picture[None]}, step=step, dataformats="NHWC")
                    tracker.writer.flush()
                elif name == "wandb":
                    tracker.log_images({title: [_coloured(picture)]}, step=step)
                else:  # accelerate's tracker of trackio logs no images
                    import trackio

                    tracker.log({title: trackio.Image(_coloured(picture))}, step=step)

    def finish(self) -> None:
        """Write what they have not yet written, and end them."""
        for name, tracker in self._each():
            with self._leaving_out(name), _silent():
                tracker.finish()
                if name == "trackio":
                    import trackio

                    trackio.finish()  # type: ignore[no-untyped-call]  # or it ends the run again, aloud, as the program ends
        self._started = None

    def _each(self) -> list[tuple[str, Any]]:
        return list((self._started or {}).items())

    @contextmanager
    def _leaving_out(self, name: str) -> Iterator[None]:
        """No tracker ends a training: its error becomes a note."""
        try:
            yield
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            (self._started or {}).pop(name, None)
            self.tell(
                f"the tracker '{name}' failed ({reason}): the run goes on without it, and metrics.jsonl "
                "has all numbers"
            )


def _coloured(picture: Picture) -> Picture:
    """The picture with three channels, as every Pillow reads it."""
    return picture.repeat(3, axis=2) if picture.shape[2] == 1 else picture


@contextmanager
def _silent() -> Iterator[None]:
    """Hide what a tracker prints as it starts and ends."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
        yield
