"""Checkpoints of a stage: weights, average, optimiser and number of updates, in one file."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import torch
from torch import nn, Tensor

from halfstep import files, storage
from halfstep.config import JsonObject
from halfstep.errors import CheckpointError
from halfstep.models.compression.int8 import apart
from halfstep.training.ema import Average
from halfstep.training.optimiser import moment_of, Optimiser
from halfstep.training.sharding import placed, placed_all

KEEP = 2
"""Checkpoints of a stage: the newest, and the one before it in case the newest is damaged."""
MOMENTS = ("step", "exp_avg", "exp_avg_sq", "momentum_buffer")
"""The optimiser's state of each parameter; steps differ where a gradient was missing or skipped."""


@dataclass
class State:
    """Everything that changes while a stage trains."""

    student: nn.Module
    optimiser: Optimiser
    average: Average | None
    scaler: torch.amp.GradScaler | None
    update: int = 0
    seconds: float = 0.0

    def tensors(self) -> dict[str, Tensor]:
        tensors = {f"student.{name}": value for name, value in self.student.state_dict().items()}
        names = {id(p): name for name, p in self.student.named_parameters()}
        for parameter, moments in self.optimiser.state.items():
            named = {f"{moment}.{names[id(parameter)]}": value for moment, value in moments.items()}
            # Of moments in 8 bits the codes and scales; the codes' meanings are always the same.
            plain = apart(named)
            tensors |= {k: v for k, v in plain.items() if k in named or not k.endswith(".qmap")}
        if self.average is not None:
            values = zip(self.student.named_parameters(), self.average.values, strict=True)
            tensors |= {f"average.{name}": value for (name, _), value in values}
        return tensors

    def load(self, tensors: Mapping[str, Tensor], about: JsonObject, source: str) -> None:
        weights = {
            k.removeprefix("student."): tensors[k] for k in tensors if k.startswith("student.")
        }
        here = self.student.state_dict()
        storage.load_into(self.student, placed_all(weights, here), source)
        del weights
        self.update, self.seconds = about["update"], about["seconds"]
        states = {}
        for k, (name, parameter) in enumerate(self.student.named_parameters()):
            if self.average is not None:
                value = self.average.values[k]
                value.copy_(placed(tensors[f"average.{name}"], value))
            moments = {
                m: _copy_like(parameter, tensors[f"{m}.{name}"])
                for m in MOMENTS
                if f"{m}.{name}" in tensors
            }
            for m in MOMENTS:
                if (codes := f"{m}.{name}.codes") in tensors:
                    scale = tensors[f"{m}.{name}.scale"]
                    moments[m] = moment_of(tensors[codes], scale, parameter, signed=m == "exp_avg")
            if moments:
                states[parameter] = moments
        self.optimiser.load(states)
        if self.scaler is not None and about.get("scaler"):
            self.scaler.load_state_dict(about["scaler"])


def _copy_like(parameter: nn.Parameter, moment: Tensor) -> Tensor:
    """Copy a moment into the parameter's memory format (such as channels last), which affects the bits."""
    if moment.shape != parameter.shape:  # the number of steps
        return moment.clone()
    return torch.empty_like(parameter, dtype=moment.dtype).copy_(placed(moment, parameter))


class _About(TypedDict):
    stage: int
    name: str
    run: str
    update: int
    seconds: float
    scaler: dict[str, float] | None


def write(
    folder: Path,
    stage: int,
    name: str,
    state: State,
    *,
    run: str = "",
    tensors: Mapping[str, Tensor] | None = None,
) -> None:
    """Save the state under its stage and update number, then remove all but the newest two.

    run      the run's id, which `choose` compares
    tensors  of the state, where it is sharded and they were gathered
    """
    about = {
        "stage": stage,
        "name": name,
        "run": run,
        "update": state.update,
        "seconds": state.seconds,
        "scaler": state.scaler.state_dict() if state.scaler else None,
    }
    stem = files.subfolder(folder.parent, folder.name) / _name(stage, state.update)
    storage.save(stem, state.tensors() if tensors is None else tensors, about)
    forget(folder, stage, keep=KEEP)


def stems(folder: Path, stage: int) -> list[Path]:
    """The complete checkpoints of a stage, oldest first: those whose json, written last, exists."""
    return sorted(p.with_suffix("") for p in folder.glob(f"{stage:02d}-*.json"))


def is_followed(folder: Path, stage: int) -> bool:
    """Whether a later stage has a checkpoint."""
    return any(int(path.name.partition("-")[0]) > stage for path in folder.glob("[0-9]*-*.json"))


def forget(folder: Path, stage: int, *, keep: int) -> None:
    """Remove all checkpoints of the stage but the newest `keep`."""
    checkpoints = stems(folder, stage)
    for stem in checkpoints[: len(checkpoints) - keep]:
        remove(stem)


def remove(stem: Path) -> None:
    """Remove a checkpoint, its json first: without that it is not complete."""
    with files.writing(stem):
        stem.with_suffix(".json").unlink(missing_ok=True)
        stem.with_suffix(".safetensors").unlink(missing_ok=True)


def tidy(folder: Path) -> None:
    """Remove what a crash left half written or half removed."""
    for path in [*folder.glob("*.part"), *folder.glob("*.safetensors")]:
        if path.suffix == ".part" or not path.with_suffix(".json").exists():
            with files.writing(path):
                path.unlink(missing_ok=True)


def choose(
    folder: Path,
    stage: int,
    *,
    name: str | None = None,
    run: str | None = None,
    previous: bool = False,
    tell: Callable[[str], object] = str,
) -> str | None:
    """The name of the stage's newest checkpoint, verified; None without checkpoints.

    `CheckpointError` for one that is damaged, or of another stage than `name` or another `run`; with
    `previous` it is removed, `tell` is called with a sentence, and the one before it is chosen.
    """
    while checkpoints := stems(folder, stage):
        newest = checkpoints[-1]
        try:
            about = storage.verify(newest, _About)
            if newest.name != _name(about["stage"], about["update"]):
                raise CheckpointError(f"'{newest}.json' does not say what its name says")
            if name not in (None, about["name"]) or run not in (None, about["run"]):
                raise CheckpointError(
                    f"'{newest}' is a checkpoint of another {'run' if name == about['name'] else 'stage'}"
                )
        except CheckpointError as error:
            has_older = len(checkpoints) > 1
            older = f"update {int(checkpoints[-2].name[3:])}" if has_older else "the stage's start"
            if not previous:
                raise CheckpointError(
                    f"{error}; add --from-previous to go on from {older} instead"
                ) from None
            remove(newest)
            tell(f"{error}; going on from {older}")
        else:
            return newest.name
    return None


def restore(stem: Path, state: State) -> None:
    """Load a checkpoint into `state`."""
    with storage.opened(stem, _About) as (tensors, about):
        state.load(tensors, about, f"'{stem}.safetensors'")


def _name(stage: int, update: int) -> str:
    return f"{stage:02d}-{update:08d}"
