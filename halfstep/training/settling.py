"""What a method leaves to the data: which pairs of blocks a smaller student keeps."""

from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from halfstep.data import Data
from halfstep.denoiser import Denoiser
from halfstep.methods.base import Objective, Stage
from halfstep.methods.guided import at_any_scale
from halfstep.methods.shrink import Shrink
from halfstep.nets.pruning import one_drop, pairs_of, worthiest
from halfstep.noise import Draw, key
from halfstep.pipeline import Pipeline
from halfstep.progress import Progress, SILENT
from halfstep.training.reading import read_by
from halfstep.training.run_folder import RunFolder

ROWS, BATCH = 512, 64
"""Samples that blocks are scored on, and how many at a time."""
M = TypeVar("M")


def settled(
    method: M,
    teacher: Pipeline,
    data: Data,
    out: Path | str | None = None,
    *,
    progress: Progress = SILENT,
) -> M:
    """The method with nothing left open; itself, where nothing is.

    out  a run's folder: one that was begun keeps what it was begun with
    """
    if not isinstance(method, Shrink) or not needs_settling(method, teacher):
        return method
    begun = _begun(Path(out)) if out is not None else {}
    if begun.get("depth") == method.depth and begun.get("keep"):
        return replace(method, keep=tuple(begun["keep"]))
    worth = scores(method, teacher, data, progress=progress)
    return replace(method, keep=worthiest(worth, method.depth // 2))


def needs_settling(method: object, teacher: Pipeline) -> bool:
    """Whether the data are to settle the method; `ConfigError` where they could not."""
    if not isinstance(method, Shrink) or not method.unsettled:
        return False
    replace(method, choose="even").kept(teacher.denoiser.net)  # refuses what cannot be
    return True


def scores(
    method: Shrink, teacher: Pipeline, data: Data, *, progress: Progress = SILENT
) -> list[float]:
    """By how much the method's loss rises without each pair of blocks, the outermost first.

    On up to 512 samples spread over the data, of the same noise for all.
    """
    denoiser = teacher.denoiser.twin().freeze()
    device = next(denoiser.parameters()).device
    objective: Objective = method.objective(denoiser, teacher.nothing)
    if teacher.guidance is not None:
        objective = at_any_scale(Stage("", denoiser, objective, 0), teacher.guidance).objective
    data = read_by(teacher, data)
    count = min(ROWS, len(data))
    parts = (torch.arange(count) * len(data) // count).split(BATCH)
    progress.expect(len(parts) * (1 + pairs_of(denoiser.net)))  # the network, and without each pair

    @torch.no_grad()
    def loss(net: nn.Module) -> float:
        student, total = _around(denoiser, net), 0.0
        for k, chosen in enumerate(parts):
            draw = Draw.all(torch.Generator(device).manual_seed(key(k * BATCH)), len(chosen))
            batch = data.drawn(chosen, draw).to(device)
            total += float(objective(student, batch, draw).cpu().double().sum())
            progress.advance()
        return total / count

    return one_drop(denoiser.net, loss)


def _around(denoiser: Denoiser, net: nn.Module) -> Denoiser:
    """The same denoiser with another network."""
    other = Denoiser(
        net,
        denoiser.schedule,
        denoiser.parameterisation,
        time=denoiser.time,
        autocast=denoiser.autocast,
    )
    return other.freeze()


def _begun(run: Path) -> dict[str, Any]:
    """The options that a run was begun with."""
    return RunFolder.open(run).options if (run / "run.json").exists() else {}
