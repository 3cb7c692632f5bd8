"""Losses, gradients and weights that are nan or infinite: the run stops before it saves them."""

import torch

from halfstep.errors import NonFinite
from halfstep.methods.stages import Stage
from halfstep.training.checkpoint import State
from halfstep.training.config import TrainingConfig
from halfstep.training.distributed import Processes
from halfstep.training.sharding import local


def non_finite(subject: str, update: int, stage: Stage, settings: TrainingConfig) -> NonFinite:
    """The error of an update.

    subject  as "loss or gradient is"
    """
    norm = settings.max_grad_norm
    bound = f"lower --max-grad-norm (now {norm:g})" if norm else "add --max-grad-norm 1"
    return NonFinite(
        f"{subject} not finite at update {update:,} of {stage.name}: lower --learning-rate (now "
        f"{settings.learning_rate:g}), with which the same command goes on from what was saved before, or "
        f"{bound} in another --out"
    )


def refuse_non_finite(
    stage: Stage, state: State, settings: TrainingConfig, processes: Processes
) -> None:
    """`NonFinite` for weights that no later loss would show, before they are saved."""
    weights = [p.detach() for p in state.student.parameters() if p.requires_grad]
    weights += [] if state.average is None else state.average.values
    bad = torch.zeros((), device=processes.device)
    for weight in weights:
        bad = bad + ~local(weight).isfinite().all()
    if processes.largest(bad):
        raise non_finite("weights are", state.update - 1, stage, settings)
