"""The one training loop.  Knows stages, optimisers and folders; knows no diffusion."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from torch import nn, Tensor
from torch.optim import AdamW

from halfstep.data import Dataset, rows as rows_of_update
from halfstep.errors import ConfigError, HalfstepError, NonFinite
from halfstep.methods.base import Objective, Stage
from halfstep.noise import Draw, key
from halfstep.training import checkpoint
from halfstep.training.checkpoint import State
from halfstep.training.ema import Average
from halfstep.training.memory import naming_memory
from halfstep.training.parallel import Processes
from halfstep.training.run import Run
from halfstep.training.settings import Training
from halfstep.training.stopping import stopping


class Stopped(HalfstepError):
    """The user or the machine asked to stop; the run is saved and can go on."""


class Watch(Protocol):
    """Whoever shows progress."""

    def begin(self, stage: Stage, update: int) -> None: ...
    def step(self, update: int, rate: float) -> None: ...
    def measure(self, loss: float) -> None: ...
    def end(self, stage: Stage) -> None: ...
    def note(self, text: str) -> None: ...


class Silent:
    """Shows nothing."""

    def begin(self, stage: Stage, update: int) -> None: ...
    def step(self, update: int, rate: float) -> None: ...
    def measure(self, loss: float) -> None: ...
    def end(self, stage: Stage) -> None: ...
    def note(self, text: str) -> None: ...


@dataclass
class Loop:
    """What every stage of a run is trained with.

    write          writes a trained stage's student to a folder
    read           gives a stage's student the weights of that folder
    gate           asked after each stage; False ends the run there
    from_previous  go on from the checkpoint before a damaged one
    """

    run: Run
    data: Dataset
    settings: Training
    processes: Processes
    write: Callable[[Stage, Path], None]
    read: Callable[[Stage, Path], None]
    watch: Watch = field(default_factory=Silent)
    gate: Callable[[Stage], bool] = lambda stage: True
    from_previous: bool = False

    def train(self, stages: Iterable[Stage]) -> nn.Module:
        """Run every stage in order; return the last student.  Finished stages are read, not redone."""
        student: nn.Module | None = None
        with stopping() as asked:
            for index, stage in enumerate(stages):
                stage.student.to(self.processes.device)
                folder = self.run.stage(stage.name)
                if not self._finished(folder, stage, index):
                    self._fit(stage, index, asked)
                self.processes.wait()
                self.read(stage, folder)
                student = stage.student
                if not self.gate(stage):
                    break
        if student is None:
            raise ConfigError("this method has no stages")
        return student

    def _finished(self, folder: Path, stage: Stage, index: int) -> bool:
        """Whether the stage is there with all its updates (`--extend` may have asked for more)."""
        if not folder.exists():
            return False
        done = self.run.updates_of(stage.name)
        if done < stage.updates and not checkpoint.stems(self.run.checkpoints, index):
            raise ConfigError(
                f"{stage.name} was finished with {done:,} updates and only a run's last stage can be "
                f"extended: ask for {done:,} of it, or choose another --out"
            )
        return done >= stage.updates

    def _fit(self, stage: Stage, index: int, asked: threading.Event) -> None:
        state = self._state(stage)
        folder = self.run.checkpoints
        checkpoint.restore(folder, index, state, previous=self.from_previous)
        if self.processes.first:
            self.run.forget_after(stage.name, state.update)
        wrapped = self.processes.wrap(stage.student)
        tally = Tally(self.processes.device)
        share = self.processes.share(self.settings.batch)
        micro = self.settings.micro_batch or share.stop - share.start
        attempt = partial(self._probe, stage.objective, stage.student)
        self.watch.begin(stage, state.update)
        began, settings = time.monotonic() - state.seconds, self.settings
        while state.update < stage.updates:
            stop = self.processes.agree(asked.is_set(), state.update + 1, settings.log_every)
            rate = settings.rate_at(state.update, stage.updates)
            with naming_memory(micro, attempt):
                loss, norm = update(self, stage.objective, wrapped, state, index, rate)
            tally.add(loss, norm, state.update, scaled=state.scaler is not None)
            state.update += 1
            state.seconds = time.monotonic() - began
            last = state.update == stage.updates
            save = state.update % settings.save_every == 0 or last or stop
            self.watch.step(state.update, rate)
            if state.update % settings.log_every == 0 or save:
                self._report(stage, state, tally, rate)
            if save and self.processes.first:
                checkpoint.write(folder, index, stage.name, state)
            if stop and not last:
                raise Stopped(
                    f"stopped at update {state.update:,} of {stage.name}; run the same command again "
                    "to go on"
                )
        self.watch.end(stage)
        del wrapped
        self._finish(stage, index, state)

    def _probe(self, objective: Objective, student: nn.Module, size: int) -> None:
        """A forward and backward of so many samples, thrown away."""
        student.zero_grad(set_to_none=True)
        device = self.processes.device
        draw = Draw.all(torch.Generator(device).manual_seed(0), size)
        batch = self.data.batch(torch.arange(size) % len(self.data)).to(device)
        objective(student, batch, draw).sum().backward()
        student.zero_grad(set_to_none=True)

    def _state(self, stage: Stage) -> State:
        student, settings = stage.student.train().requires_grad_(True), self.settings
        if settings.compile:
            getattr(student, "net", student).compile()
        optimiser = AdamW(
            student.parameters(),
            settings.rate,
            settings.betas,
            weight_decay=settings.weight_decay,
            fused=self.processes.device.type in ("cuda", "cpu"),
        )
        average = Average(student, settings.ema) if settings.ema else None
        scaler = None
        if settings.precision == "fp16":
            scaler = torch.amp.GradScaler(self.processes.device.type)
        return State(student, optimiser, average, scaler)

    def _report(self, stage: Stage, state: State, tally: "Tally", rate: float) -> None:
        """The numbers since the last report; raises `NonFinite` before anything is written."""
        total = self.processes.total(tally.losses / self.processes.world)
        loss, norm, bad = float(total) / max(tally.count, 1), float(tally.norms), int(tally.bad)
        tally.reset()
        if bad >= 0:
            raise NonFinite(
                f"loss or gradient is not finite at update {bad:,} of {stage.name}; lower --rate (now "
                f"{self.settings.rate:g}) or its --clip (now {self.settings.clip:g}); the last "
                "checkpoint is from before it"
            )
        self.watch.measure(loss)
        if self.processes.first:
            self.run.log(
                {
                    "stage": stage.name,
                    "update": state.update,
                    "loss": loss,
                    "norm": norm,
                    "rate": rate,
                }
            )

    def _finish(self, stage: Stage, index: int, state: State) -> None:
        """The averaged student becomes the stage's; its checkpoints but the last stage's go."""
        if not self.processes.first:
            return
        if state.average is not None:
            state.average.copy_to(stage.student)
        forwards = stage.updates * self.settings.batch * stage.objective.forwards
        self.run.finish(stage.name, lambda folder: self.write(stage, folder))
        self.run.log(
            {
                "stage": stage.name,
                "updates": stage.updates,
                "seconds": state.seconds,
                "forwards": forwards,
            }
        )
        for old in checkpoint.stems(self.run.checkpoints, index)[:-1]:
            checkpoint.remove(old)
        for old in checkpoint.stems(self.run.checkpoints, index - 1):
            checkpoint.remove(old)


def update(
    loop: Loop,
    objective: Objective,
    student: nn.Module,
    state: State,
    stage: int,
    rate: float,
) -> tuple[Tensor, Tensor]:
    """One optimiser update: this process's summed loss over the whole batch size, and the gradient norm."""
    settings, processes = loop.settings, loop.processes
    share = processes.share(settings.batch)
    chosen = rows_of_update(settings.seed, stage, state.update, settings.batch, len(loop.data))
    slices = list(micro_batches(share, settings.micro_batch))
    loss = torch.zeros((), device=processes.device)
    for k, rows in enumerate(slices):
        # Dropout's; the 1 keeps it apart from the draws' own key, which ends there.
        torch.manual_seed(key(settings.seed, stage, state.update, 1 + processes.rank, k))
        generator = torch.Generator(processes.device)
        generator.manual_seed(key(settings.seed, stage, state.update))
        draw = Draw(generator, settings.batch, rows)
        flips = draw.uniform() < 0.5 if loop.data.flip else None
        batch = loop.data.batch(chosen[rows], flips).to(processes.device)
        last = k == len(slices) - 1
        with nullcontext() if last else processes.unsynced(student):
            # DDP averages over the processes: each one's share of the whole batch's mean, times world.
            part = objective(student, batch, draw).sum() / settings.batch * processes.world
            (part if state.scaler is None else state.scaler.scale(part)).backward()
        loss += part.detach()
    return loss, step(student, state, settings, rate)


def step(student: nn.Module, state: State, settings: Training, rate: float) -> Tensor:
    """Clip, optimise, average; returns the gradient's norm without reading it."""
    optimiser, scaler = state.optimiser, state.scaler
    if scaler is not None:
        scaler.unscale_(optimiser)
    parameters = [p for p in student.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if settings.clip:
        torch.nn.utils.clip_grads_with_norm_(parameters, settings.clip, norm)
    for group in optimiser.param_groups:
        group["lr"] = rate
    if scaler is None:
        optimiser.step()
    else:
        scaler.step(optimiser)
        scaler.update()
    optimiser.zero_grad()
    if state.average is not None:
        state.average.follow(state.student, state.update)
    return norm


class Tally:
    """Losses and norms since the last report, kept on the device: reading them waits for it."""

    def __init__(self, device: torch.device):
        self.losses = torch.zeros((), device=device)
        self.norms = torch.zeros((), device=device)
        self.bad = torch.full((), -1, device=device)
        self.count = 0

    def add(self, loss: Tensor, norm: Tensor, update: int, *, scaled: bool) -> None:
        # Under loss scaling an infinite gradient is ordinary: the scaler skips that update.
        fine = loss.isfinite() if scaled else loss.isfinite() & norm.isfinite()
        self.bad = torch.where((self.bad < 0) & ~fine, update, self.bad)
        self.losses += loss
        self.norms = torch.maximum(self.norms, norm)
        self.count += 1

    def reset(self) -> None:
        self.losses.zero_()
        self.norms.zero_()
        self.count = 0


def micro_batches(share: slice, size: int) -> Iterator[slice]:
    """The share in slices of `size` rows; 0 is one slice.  The last may be smaller."""
    size = size or share.stop - share.start
    for low in range(share.start, share.stop, size):
        yield slice(low, min(low + size, share.stop))
