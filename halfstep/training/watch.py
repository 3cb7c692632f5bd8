"""What a run shows as it goes on: lines of metrics.jsonl, trackers, and pictures of samples."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, ExitStack
from dataclasses import dataclass
from datetime import datetime, UTC
from functools import partial
from numbers import Real
from pathlib import Path
from time import monotonic

import torch

from halfstep import files
from halfstep.config import JsonObject
from halfstep.errors import HalfstepError
from halfstep.methods.stages import Stage
from halfstep.models.eval_mode import evaluating
from halfstep.pictures import enlarged, Picture, save_picture
from halfstep.rng import fork_rng
from halfstep.training.checkpoint import State
from halfstep.training.distributed import Processes
from halfstep.training.gate_record import read_gate
from halfstep.training.pace import memory_in_use, Pace
from halfstep.training.progress import ProgressCallback
from halfstep.training.run_folder import RunFolder
from halfstep.training.trackers import Trackers

Draw = Callable[[Stage], Picture]
"""Draws samples of a stage's student, which has its averaged weights."""
LEAST, MOST = 512, 16
"""Pixels that a picture's width is enlarged to, by a factor of so much at most."""
NAMES = {"rate": "learning_rate", "norm": "grad_norm"}
"""Names of the log that trackers have in full."""


@dataclass
class Watch:
    """Writes a run's log and draws its samples; the first process has the trackers.

    samples_every  updates between pictures of samples; 0 draws none
    draw           None where nothing can be drawn
    compiled       whether networks are compiled, which drawing is not
    """

    run: RunFolder
    processes: Processes
    callback: ProgressCallback
    trackers: Trackers
    samples_every: int = 0
    draw: Draw | None = None
    compiled: bool = False

    def __post_init__(self) -> None:
        self.pace, self._before = Pace(), 0
        self._decided = set(self._decisions())

    def begin(self, stage: Stage, update: int) -> None:
        """A stage goes on after so many updates."""
        self.processes.run_on_first(partial(self.trackers.start, self._before + update))
        self.processes.run_on_first(partial(self._forget_pictures, stage, update))
        self.pace.restart()

    def finished(self, stage: Stage, *, passed: bool) -> None:
        """A stage is finished, and the gate has decided."""
        self._before += stage.updates
        self.processes.run_on_first(partial(self._log_decision, stage, passed))

    def log(self, line: JsonObject) -> None:
        """Write a line, with the time and the memory; the first process alone calls it."""
        now = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "memory": memory_in_use(self.processes.device),
        }
        self.run.log({**line, **now})
        self.trackers.log(dict(scalars({**line, **now})), self._before + int(line["update"]))

    def is_due(self, stage: Stage, update: int) -> bool:
        """Whether a picture is drawn after this update: every few, and after a stage's last."""
        if self.draw is None or not self.samples_every:
            return False
        return update % self.samples_every == 0 or update == stage.updates

    def show(self, stage: Stage, state: State) -> float:
        """Draw samples of the averaged student into RUN/samples; returns the seconds that it took."""
        began = monotonic()
        picture = self.processes.forward_on_first(partial(self._drawn, stage, state))
        self.processes.run_on_first(partial(self._show, stage, state.update, picture))
        return monotonic() - began

    def close(self) -> None:
        """End the trackers."""
        self.trackers.finish()

    def _drawn(self, stage: Stage, state: State) -> Picture | str:
        """The picture, or the reason for its absence: drawing never ends a training."""
        assert self.draw is not None
        try:
            with fork_rng(), torch.no_grad(), self._averaged(stage, state):
                return self.draw(stage)
        except torch.OutOfMemoryError:
            return "they need more memory than the training leaves"
        except HalfstepError as error:
            return str(error)

    @contextmanager
    def _averaged(self, stage: Stage, state: State) -> Iterator[None]:
        """Inside it the student has its averaged weights, in eval mode."""
        with ExitStack() as stack:
            stack.enter_context(evaluating(stage.student))
            if self.compiled:  # other shapes would be compiled, and change how training is
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            if state.average is not None:
                stack.enter_context(state.average.swapped_into(stage.student))
            yield

    def _show(self, stage: Stage, update: int, picture: Picture | str) -> None:
        if isinstance(picture, str):
            self.callback.note(f"no samples of {stage.name} at update {update:,}: {picture}")
            return
        path = files.subfolder(self.run.folder, "samples") / f"{stage.name}-{update:08d}.png"
        save_picture(enlarged(picture, min(MOST, -(-LEAST // picture.shape[1]))), path)
        self.trackers.show(f"samples/{stage.name}", picture, self._before + update)

    def _forget_pictures(self, stage: Stage, update: int) -> None:
        """Remove pictures of updates that are about to be done again."""
        for path in (self.run.folder / "samples").glob(f"{stage.name}-*.png"):
            number = path.stem.removeprefix(f"{stage.name}-")
            if number.isdecimal() and int(number) > update:
                files.remove(path)

    def _decisions(self) -> dict[str, dict[str, float]]:
        """The ratios that the gate has measured, by stage."""
        path = Path(self.run.folder) / "gate.json"
        if not self.processes.first or not path.exists():
            return {}
        return {
            record["stage"]: {**record["ratio"], "samples": record["samples"]}  # type: ignore[dict-item]
            for record in read_gate(path)["decisions"]
        }

    def _log_decision(self, stage: Stage, passed: bool) -> None:
        """Log a decision that the gate has made just now."""
        decisions = self._decisions()
        if stage.name in decisions and stage.name not in self._decided:
            numbers = {
                ("ratio" if k == "value" else k): v for k, v in decisions[stage.name].items()
            }
            gate = {"gate": {**numbers, "passed": float(passed)}}
            self.trackers.start(self._before)  # of a stage that was trained before a crash
            self.trackers.log(dict(scalars(gate)), self._before)
        self._decided |= decisions.keys()


def scalars(line: JsonObject, prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a line by name, those in tables as table/name."""
    for name, value in line.items():
        if isinstance(value, dict):
            yield from scalars(value, f"{prefix}{name}/")
        elif isinstance(value, Real) and not isinstance(value, bool) and name != "update":
            yield f"{prefix}{NAMES.get(name, name)}", float(value)
