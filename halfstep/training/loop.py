"""The one training loop.  Knows stages, optimisers and folders; knows no diffusion."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import nn

from halfstep.config import JsonObject
from halfstep.data import Data
from halfstep.errors import CheckpointError, ConfigError, Stopped
from halfstep.methods.stages import Objective, Stage
from halfstep.models.eval_mode import evaluating, to_train
from halfstep.models.hooks import unwrap
from halfstep.rng import Draw, key
from halfstep.training import checkpoint
from halfstep.training.batch_norm import update_batch_norm
from halfstep.training.checkpoint import State
from halfstep.training.config import TrainingConfig
from halfstep.training.distributed import Processes
from halfstep.training.ema import Average
from halfstep.training.finite import non_finite, refuse_non_finite
from halfstep.training.metrics_log import RunCost
from halfstep.training.oom import naming_memory
from halfstep.training.optimiser import Optimiser
from halfstep.training.option_changes import Place, value_at
from halfstep.training.progress import ProgressCallback, StopOnBrokenPipe, Tally
from halfstep.training.run_folder import RunFolder
from halfstep.training.signals import stopping, StopRequest
from halfstep.training.update import update
from halfstep.training.watch import Watch

Prepare = Callable[[Stage, ProgressCallback, StopRequest], None]
MEASURED = 64
"""Samples for the measures of an objective in the log."""
SETTINGS = ("learning_rate", "log_every", "save_every")
"""Settings that may change within a run."""


@dataclass
class Loop:
    """Trains the stages of a run, one after another.

    write          writes a trained stage's student to a folder
    read           gives a stage's student the weights of that folder
    watch          writes the log and draws samples
    gate           called after each stage; False ends the run there
    from_previous  go on from the checkpoint before a damaged one
    prepare        makes what a stage's updates read, before they begin or go on
    """

    run: RunFolder
    data: Data
    settings: TrainingConfig
    processes: Processes
    write: Callable[[Stage, Path], None]
    read: Callable[[Stage, Path], None]
    watch: Watch
    callback: ProgressCallback = field(default_factory=ProgressCallback)
    gate: Callable[[Stage], bool] = lambda stage: True
    from_previous: bool = False
    prepare: Prepare = lambda stage, callback, request: None

    def train(self, stages: Iterable[Stage]) -> nn.Module:
        """Run every stage in order; return the last student.  Finished stages are read, not redone."""
        student: nn.Module | None = None
        with stopping() as request:
            self.callback = self.watch.callback = StopOnBrokenPipe(self.callback, request)
            for index, stage in enumerate(stages):
                self.processes.place(stage)
                if not self.processes.run_on_first(partial(self._finished, stage, index)):
                    self._fit(stage, index, request)
                with self._naming(stage):
                    self.read(stage, self.run.stage_folder(stage.name))
                student = stage.student
                # All call the gate, so that none waits long; the first one's decision counts.
                go_on = self.gate(stage)
                go_on = self.processes.run_on_first(partial(bool, go_on))
                self.watch.finished(stage, passed=go_on)
                if not go_on:
                    break
        if student is None:
            raise ConfigError("this method has no stages")
        return student

    def _finished(self, stage: Stage, index: int) -> bool:
        """Whether the stage is finished with all its updates (`--extend` may have added some)."""
        with self._naming(stage):
            record = self.run.finished(stage.name)
            self.run.refuse_longer(index, stage.name, stage.updates)
        if record is None or record["updates"] < stage.updates:
            return False
        self._after_finish(stage, index)
        return True

    @contextmanager
    def _naming(self, stage: Stage) -> Iterator[None]:
        """Around reading a finished stage: add to an error that the stage can be trained again."""
        try:
            yield
        except CheckpointError as error:
            raise CheckpointError(
                f"{error}; or delete '{self.run.stage_folder(stage.name)}', and the same command trains that "
                "stage again"
            ) from None

    def _fit(self, stage: Stage, index: int, request: StopRequest) -> None:
        began = time.monotonic()
        self.prepare(stage, self.callback, request)
        prepared = time.monotonic() - began
        state = self._resume(stage, index)
        rates = self._rates(stage, index, state.update)
        wrapped, start = self.processes.wrap(stage.student), state.update
        tally = Tally(self.processes.device)
        began, settings = time.monotonic() - prepared - state.seconds, self.settings
        self.callback.begin(stage, state.update)
        self.watch.begin(stage, state.update)
        try:
            while state.update < stage.updates:
                stop = request.is_set()
                stop = self.processes.any_stops(stop, state.update + 1, settings.log_every)
                rate = rates(state.update)
                self._update(stage, index, state, wrapped, tally, rate)
                state.seconds = time.monotonic() - began
                last = state.update == stage.updates
                save = state.update % settings.save_every == 0 or last or stop
                show = self.watch.is_due(stage, state.update)
                self.callback.step(state.update, rate)
                logged = state.update % settings.log_every == 0 or save or show
                if logged:
                    self._report(stage, state, tally, rate)
                elif (
                    state.update == start + 1
                ):  # the first loss is shown at once, and logged with others
                    self.callback.measure(
                        float(self.processes.total(tally.losses)) / self.processes.world
                    )
                if show:  # before it is saved: a crash leaves no checkpoint without its picture
                    began += self.watch.show(stage, state)
                if save:
                    refuse_non_finite(stage, state, settings, self.processes)
                    self._save(stage, index, state)
                if logged:
                    self.watch.pace.restart()
                if stop and not last:
                    raise Stopped(
                        f"stopped at update {state.update:,} of {stage.name}; run the same command "
                        "again to go on"
                    ) from request.cause
        finally:
            self.callback.end(stage)
            self.processes.unwrap()
        self._finish(stage, index, state)

    def _resume(self, stage: Stage, index: int) -> State:
        """The stage's state, from its newest checkpoint if it has one; the same on every process."""
        state, folder = self._state(stage), self.run.checkpoints

        def choose() -> str | None:
            return checkpoint.choose(
                folder, index, name=stage.name, run=self.run.id, previous=self.from_previous,
                tell=self.callback.note,
            )  # fmt: skip

        name = self.processes.run_on_first(choose)
        if name is not None:
            checkpoint.restore(folder / name, state)
        forget = partial(self.run.log_file.forget_after, stage.name, state.update)
        self.processes.run_on_first(forget)
        return state

    def _rates(self, stage: Stage, index: int, update: int) -> Callable[[int], float]:
        """The learning rate of each update, with the changes within the run; a new one is recorded here."""
        values = {name: getattr(self.settings, name) for name in SETTINGS}
        values["samples_every"] = self.watch.samples_every
        record = partial(self.run.change_options, values, Place(index, update), stage.name)
        begun, changes, words = self.processes.run_on_first(record)
        for word in words:
            self.callback.note(word)

        def rate(update: int) -> float:
            place = Place(index, update)
            highest = value_at("learning_rate", begun["learning_rate"], changes, place)
            return self.settings.rate_at(update, stage.updates, highest)

        return rate

    def _update(
        self,
        stage: Stage,
        index: int,
        state: State,
        wrapped: nn.Module,
        tally: Tally,
        rate: float,
    ) -> None:
        share = self.processes.share(self.settings.batch_size)
        whole = share.stop - share.start
        micro = min(self.settings.micro_batch_size or whole, whole)
        # Processes with a sharded network run it together, and one alone may be out of memory.
        probe = None if self.processes.sharded else partial(self._probe, stage.objective, state)
        with naming_memory(micro, probe):
            loss, norm = update(
                stage.objective.at(state.update / stage.updates),
                wrapped,
                state,
                self.data,
                settings=self.settings,
                processes=self.processes,
                stage=index,
                rate=rate,
            )
        tally.add(loss, norm, state.update, scaled=state.scaler is not None)
        state.update += 1

    def _probe(self, objective: Objective, state: State, size: int) -> None:
        """A forward and backward of so many samples, discarded, with the memory of an update in use."""
        student, device = state.student, self.processes.device
        parameters = [p for p in student.parameters() if p.requires_grad]
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)  # there from the first micro-batch on
        spare = [] if state.optimiser.state else [torch.empty_like(p) for p in parameters * 2]
        draw = Draw.all(torch.Generator(device).manual_seed(0), size)
        batch = self.data.batch(torch.arange(size) % len(self.data)).to(device)
        objective(student, batch, draw).sum().backward()
        student.zero_grad(set_to_none=True)
        del spare

    def _state(self, stage: Stage) -> State:
        student, settings = stage.student, self.settings
        to_train(student)
        if settings.compile:
            unwrap(student).compile()
        fused = self.processes.device.type in ("cuda", "cpu")
        optimiser = Optimiser(student, settings, fused=fused)
        average = Average(student, settings.ema) if settings.ema else None
        scaler = None
        if settings.precision == "fp16":
            scaler = torch.amp.GradScaler(self.processes.device.type)
        return State(student, optimiser, average, scaler)

    def _report(self, stage: Stage, state: State, tally: Tally, rate: float) -> None:
        """The numbers since the last report; raises `NonFinite` before anything is written."""
        total = self.processes.total(tally.losses / self.processes.world)
        bad = int(self.processes.largest(tally.bad))
        loss, norm = float(total) / max(tally.count, 1), float(tally.norms)
        pace = self.watch.pace.samples_per_second(tally.count * self.settings.batch_size)
        tally.reset()
        if bad < 0 and state.scaler is not None and state.scaler.get_scale() < 1:
            bad = state.update - 1  # every gradient is skipped, however small its loss is scaled
        if bad >= 0:
            raise non_finite("loss or gradient is", bad, stage, self.settings)
        self.callback.measure(loss)
        line = {
            "stage": stage.name,
            "update": state.update,
            "loss": loss,
            "norm": norm,
            "rate": rate,
            "samples_per_second": pace,
        }
        measures = self.processes.forward_on_first(partial(self._measures, stage, state))
        self.processes.run_on_first(lambda: self.watch.log({**line, **measures}))

    def _measures(self, stage: Stage, state: State) -> JsonObject:
        """The objective's measures, always with the same samples and noise, which training never draws."""
        objective = stage.objective.at(state.update / stage.updates)
        generator = torch.Generator().manual_seed(key(self.settings.seed))
        rows = torch.randperm(len(self.data), generator=generator)[:MEASURED]
        generator = torch.Generator(self.processes.device).manual_seed(key(self.settings.seed))
        draw = Draw.all(generator, len(rows))
        batch = self.data.training_batch(rows, draw).to(self.processes.device)
        with torch.no_grad(), evaluating(state.student):
            return dict(objective.measure(state.student, batch, draw))

    def _save(self, stage: Stage, index: int, state: State) -> None:
        tensors = self.processes.gathered(state.tensors())

        def write() -> None:
            self.run.check()
            folder, run = self.run.checkpoints, self.run.id
            checkpoint.write(folder, index, stage.name, state, run=run, tensors=tensors)

        self.processes.run_on_first(write)

    def _finish(self, stage: Stage, index: int, state: State) -> None:
        """Give the student the averaged weights, and write the finished stage."""
        self.processes.forward_on_first(partial(self._use_average, stage, index, state))
        whole = self.processes.whole(stage)
        self.processes.run_on_first(partial(self._write, whole, index, state))

    def _use_average(self, stage: Stage, index: int, state: State) -> None:
        if state.average is None:
            return
        state.average.copy_to(stage.student)
        if stage.updates:
            device, seed = self.processes.device, self.settings.seed
            update_batch_norm(stage, self.data, device, seed=seed, index=index)

    def _write(self, stage: Stage, index: int, state: State) -> None:
        cost: RunCost = {
            "updates": stage.updates,
            "seconds": state.seconds,
            "forwards": stage.objective.cost(stage.updates, self.settings.batch_size),
        }
        self.run.finish(stage.name, lambda folder: self.write(stage, folder), cost)
        self._after_finish(stage, index)

    def _after_finish(self, stage: Stage, index: int) -> None:
        """Log a finished stage, and remove all but its last checkpoint; may be called twice."""
        self.run.log_finished(stage.name)
        checkpoint.forget(self.run.checkpoints, index, keep=1)
        checkpoint.forget(self.run.checkpoints, index - 1, keep=0)
