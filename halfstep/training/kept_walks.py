"""The teacher's walks of a run: made before the first update that needs them, by all processes."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from halfstep.data import Data
from halfstep.data.walks.store import is_walks, open_walks, Walks
from halfstep.data.walks.writing import BATCH, write_walks
from halfstep.errors import ConfigError, HalfstepError, Stopped
from halfstep.methods.diffusion.kept_walks import FromWalks, TeacherWalker
from halfstep.methods.stages import Stage
from halfstep.progress import Progress, SILENT
from halfstep.training.config import TrainingConfig
from halfstep.training.distributed import Processes
from halfstep.training.divided import Divided
from halfstep.training.progress import ProgressCallback
from halfstep.training.signals import StopRequest

ON_DEVICE = 2**31
"""Bytes of walks below which all of them are kept in the device's memory."""
STOPPED = "stopped while the teacher walked; run the same command again to go on"


@dataclass(frozen=True)
class WalkKeeper:
    """Makes the walks that a run's stages learn from in a folder, or reads those that are there.

    guidance_range  of the scales that the teacher takes as an input, or None
    """

    folder: Path
    data: Data
    training: TrainingConfig
    processes: Processes
    guidance_range: tuple[float, float] | None = None

    def prepare(self, stage: Stage, callback: ProgressCallback, request: StopRequest) -> None:
        """Make the walks of a stage's first update, with progress; later ones are made when they are due."""
        objective = stage.objective.inner
        if not isinstance(objective, FromWalks):
            return
        source = objective.source
        source.make = partial(self._walks, stage, callback, request)
        source.up_to(objective.order.begin)

    def _walks(
        self, stage: Stage, callback: ProgressCallback, request: StopRequest, count: int
    ) -> Walks:
        objective = stage.objective.inner
        assert isinstance(objective, FromWalks)
        source, processes, training = objective.source, self.processes, self.training
        like = torch.empty(0, device=processes.device)
        walker = TeacherWalker(
            source, stage.objective, self.data, training.seed, like, training.precision,
            self.guidance_range,
        )  # fmt: skip
        size = source.disk(count, self.data) / 1e6
        title = (
            f"walking {count:,} noises, {source.forwards} forwards each, {size:,.1f} MB on the disk"
        )
        batch = min(BATCH, training.micro_batch_size or training.batch_size)
        with callback.work(title if processes.first else "") as shown:
            progress = _Stopping(shown if processes.first else SILENT, request)
            if processes.sharded:
                self._refuse_fewer(walker, count)
            try:
                write_walks(
                    walker, self.folder, count, batch=batch, division=Divided(processes),
                    progress=progress,
                )  # fmt: skip
            except HalfstepError:
                if not processes.first and request.is_set():  # as the first process, which tells
                    raise Stopped(STOPPED) from request.cause
                raise
        processes.run_on_first(partial(self._verify, walker))
        walks = open_walks(self.folder, verify=False)
        return walks.in_memory(processes.device) if walks.nbytes < ON_DEVICE else walks

    def _verify(self, walker: TeacherWalker) -> None:
        open_walks(self.folder, key=walker.key)

    def _refuse_fewer(self, walker: TeacherWalker, count: int) -> None:
        """`ConfigError` for a sharded teacher that would have to walk."""
        if not is_walks(self.folder) or len(open_walks(self.folder, key=walker.key)) < count:
            raise ConfigError(
                "each process walks with the whole teacher, and --shard divides it: leave --shard out, or "
                f"give a folder with {count:,} walks (--walks)"
            )


@dataclass(frozen=True)
class _Stopping:
    """Progress that ends the work when the run is asked to stop."""

    progress: Progress
    request: StopRequest

    def expect(self, steps: int) -> None:
        self.progress.expect(steps)

    def advance(self, steps: int = 1) -> None:
        self.progress.advance(steps)
        if self.request.is_set():
            raise Stopped(STOPPED) from self.request.cause

    def note(self, text: str) -> None:
        self.progress.note(text)
