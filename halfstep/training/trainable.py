"""Check, before there is a folder, that a stage's student can be trained, saved and loaded."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from halfstep.code_identity import holds_user_code, identity, is_user_code, user_code
from halfstep.config import JsonObject
from halfstep.data import Data
from halfstep.diffusion.denoiser import not_trained
from halfstep.errors import ConfigError
from halfstep.methods.stages import Stage
from halfstep.models import import_function, recipe
from halfstep.models.eval_mode import evaluating, to_train
from halfstep.models.gradient_checkpointing import checkpointing
from halfstep.models.half_storage import store_frozen
from halfstep.models.hooks import unwrap
from halfstep.models.lora import LoraNet
from halfstep.models.offload import offload, refuse_offload
from halfstep.models.rebuild import refuse_wrapped
from halfstep.rng import Draw, fork_rng
from halfstep.training.config import TrainingConfig
from halfstep.training.distributed import Processes
from halfstep.training.optimiser import check_optimiser
from halfstep.training.update import micro_batches

Check = Callable[[nn.Module], None]


def checked(
    stages: Iterable[Stage],
    data: Data,
    training: TrainingConfig,
    processes: Processes,
    check: Check,
    *,
    gradient_checkpointing: bool = False,
    offloaded: bool = False,
) -> Iterator[Stage]:
    """The same stages, frozen networks stored as they compute; refused unless they can be trained.

    check  refuses a student that could not be loaded again
    offloaded  frozen networks wait in the CPU's memory
    """
    if offloaded:
        refuse_offload(processes.device)
    for stage in stages:
        student = unwrap(stage.student)
        refuse_wrapped(student)
        check(student)
        if not any(p.requires_grad for p in student.parameters()):
            raise ConfigError(
                f"all parameters of this {type(student).__name__} are frozen (requires_grad=False), so that "
                "nothing would be trained: call requires_grad_(True) on those that are to be"
            )
        # The student of this stage is made, so that no copy of its teacher needs float32 any more.
        store_frozen(stage.objective.networks)
        if offloaded:
            offload(stage.objective.networks, processes.device)
        check_optimiser(student, training)
        with checkpointing(student) if gradient_checkpointing else nullcontext():
            _refuse_lone_row(stage, data, training, processes)
            yield stage


def identity_of(stage: Stage) -> JsonObject:
    """What a run's result depends on besides its options: the user's own code, and frozen parameters."""
    student = unwrap(stage.student)
    parts, frozen = list(student.modules()), set(not_trained(student))
    for lora in [part for part in parts if isinstance(part, LoraNet)]:  # its base is no part of it
        parts += lora.base.net.modules()
        frozen |= lora.base.frozen
    classes = {type(part) for part in parts if is_user_code(type(part))}
    code = user_code(*sorted(classes, key=lambda kind: f"{kind.__module__}:{kind.__qualname__}"))
    about: JsonObject = {"network": code["code"]} if code else {}
    if holds_user_code(stage.objective):
        about["objective"] = identity(stage.objective)
    if frozen:
        about["frozen"] = sorted(frozen)
    return about


def code_of_net(net: nn.Module) -> JsonObject:
    """The user's own function that builds the network; nothing for halfstep's networks."""
    name = recipe(net)[0]
    made: Any = getattr(net, "made_by", None) or (import_function(name) if ":" in name else None)
    return {} if made is None else {"net code": identity(made)}


def _refuse_lone_row(
    stage: Stage, data: Data, training: TrainingConfig, processes: Processes
) -> None:
    """`ConfigError` where the smallest micro-batch is one row, and one row cannot be trained on.

    A batch norm has no variance of one row, and some losses compare rows.
    """
    share = processes.share(training.batch_size)
    rows, micro = share.stop - share.start, training.micro_batch_size
    if min(part.stop - part.start for part in micro_batches(share, micro)) > 1:
        return
    if not (problem := _problem_of_one_row(stage, data, processes.staging)):
        return
    if rows == 1:
        where, instead = "each process's share of it", f"batch_size={2 * processes.world}"
    else:
        fits = next(
            m for m in (*range(micro, 1, -1), *range(micro, rows + 1)) if m > 1 and rows % m != 1
        )
        where = f"the last of its micro-batches of {micro}"
        instead = f"micro_batch_size={fits}"
    raise ConfigError(
        f"a batch of {training.batch_size} leaves one row to {where}, and {problem}: write {instead} "
        f"(command line: --{instead.replace('_', '-').replace('=', ' ')})"
    )


def _problem_of_one_row(stage: Stage, data: Data, device: torch.device) -> str:
    """Why the stage's objective cannot be computed on one row; empty if it can."""
    student, objective = stage.student.to(device), stage.objective.at(0.0)
    buffers = [(buffer, buffer.clone()) for buffer in student.buffers()]
    draw = Draw.all(torch.Generator(device).manual_seed(0), 1)
    with torch.no_grad(), fork_rng(0), evaluating(student):
        to_train(student)
        try:
            batch = data.training_batch(torch.zeros(1, dtype=torch.long), draw).to(device)
            objective(student, batch, draw)
        except ConfigError as error:
            return str(error)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            return "a batch norm has no variance of one row"
        finally:
            for buffer, value in buffers:
                buffer.copy_(value)
    return ""
