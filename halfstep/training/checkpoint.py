"""What a stage needs to go on: weights, average, optimiser and where it stands, in one file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn, Tensor
from torch.optim import AdamW

from halfstep import storage
from halfstep.errors import CheckpointError
from halfstep.training.ema import Average

KEEP = 2
"""The newest, and the one before it should the newest be damaged."""


@dataclass
class State:
    """Everything that changes while a stage trains."""

    student: nn.Module
    optimiser: AdamW
    average: Average | None
    scaler: torch.amp.GradScaler | None
    update: int = 0
    seconds: float = 0.0

    def tensors(self) -> dict[str, Tensor]:
        found = {f"student.{name}": value for name, value in self.student.state_dict().items()}
        named = {id(p): name for name, p in self.student.named_parameters()}
        for parameter, moments in self.optimiser.state.items():
            for moment in ("exp_avg", "exp_avg_sq"):
                found[f"{moment}.{named[id(parameter)]}"] = moments[moment]
        if self.average is not None:
            for (name, _), value in zip(
                self.student.named_parameters(), self.average.values, strict=True
            ):
                found[f"average.{name}"] = value
        return found

    def optimiser_steps(self) -> float:
        """The optimiser's own count: under loss scaling it leaves some updates out."""
        return max((float(m["step"]) for m in self.optimiser.state.values()), default=0.0)

    def load(self, tensors: dict[str, Tensor], about: dict[str, Any], source: str) -> None:
        own = {
            k.removeprefix("student."): v for k, v in tensors.items() if k.startswith("student.")
        }
        storage.load_into(self.student, own, source)
        self.update, self.seconds = about["update"], about["seconds"]
        for k, (name, parameter) in enumerate(self.student.named_parameters()):
            if self.average is not None:
                self.average.values[k].copy_(tensors[f"average.{name}"])
            if f"exp_avg.{name}" in tensors:
                self.optimiser.state[parameter] = {
                    "step": torch.tensor(about["optimiser_steps"], device=parameter.device),
                    "exp_avg": tensors[f"exp_avg.{name}"].to(parameter.device),
                    "exp_avg_sq": tensors[f"exp_avg_sq.{name}"].to(parameter.device),
                }
        if self.scaler is not None and about.get("scaler"):
            self.scaler.load_state_dict(about["scaler"])


def write(folder: Path, stage: int, name: str, state: State) -> None:
    """Save the state under its stage and update number, then forget all but the newest two."""
    folder.mkdir(parents=True, exist_ok=True)
    about = {
        "stage": stage,
        "name": name,
        "update": state.update,
        "seconds": state.seconds,
        "optimiser_steps": state.optimiser_steps(),
        "scaler": state.scaler.state_dict() if state.scaler else None,
    }
    storage.save(folder / f"{stage:02d}-{state.update:08d}", state.tensors(), about)
    for old in stems(folder, stage)[:-KEEP]:
        remove(old)


def stems(folder: Path, stage: int) -> list[Path]:
    """The whole checkpoints of a stage, oldest first: those whose json, written last, is there."""
    return sorted(p.with_suffix("") for p in folder.glob(f"{stage:02d}-*.json"))


def remove(stem: Path) -> None:
    """The json first: without it the pair is not there."""
    stem.with_suffix(".json").unlink(missing_ok=True)
    stem.with_suffix(".safetensors").unlink(missing_ok=True)


def restore(folder: Path, stage: int, state: State, *, previous: bool = False) -> bool:
    """Load the newest checkpoint of the stage into `state`; False if there is none.

    A damaged one is named and refused; with `previous` it is removed and the one before it used.
    """
    while found := stems(folder, stage):
        try:
            tensors, about = storage.load(found[-1])
        except CheckpointError as error:
            if not previous:
                older = (
                    f"update {int(found[-2].name[3:])}" if len(found) > 1 else "the stage's start"
                )
                raise CheckpointError(
                    f"{error}; add --from-previous to go on from {older} instead"
                ) from None
            remove(found[-1])
            continue
        state.load(tensors, about, f"'{found[-1]}.safetensors'")
        return True
    return False
