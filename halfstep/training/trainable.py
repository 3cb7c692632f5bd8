"""Whether a stage's student can be trained, and saved so that it loads: asked before there is a folder."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn

from halfstep.code_identity import holds_user_code, identity, is_user_code, user_code
from halfstep.data import Data
from halfstep.diffusion.denoiser import not_trained
from halfstep.errors import ConfigError
from halfstep.methods.base import Stage
from halfstep.models import import_function, recipe
from halfstep.models.eval_mode import evaluating, to_train
from halfstep.models.hooks import unwrap
from halfstep.models.rebuild import refuse_wrapped
from halfstep.rng import Draw, fork_rng
from halfstep.training.config import TrainingConfig
from halfstep.training.distributed import Processes
from halfstep.training.update import micro_batches

Check = Callable[[nn.Module], None]


def checked(
    stages: Iterable[Stage],
    data: Data,
    training: TrainingConfig,
    processes: Processes,
    check: Check,
) -> Iterator[Stage]:
    """The same stages, each once its student is found to be one that can be trained.

    check  refuses a student that could not be loaded again
    """
    for stage in stages:
        student = unwrap(stage.student)
        refuse_wrapped(student)
        check(student)
        if not any(p.requires_grad for p in student.parameters()):
            raise ConfigError(
                f"all parameters of this {type(student).__name__} are frozen (requires_grad=False), so that "
                "nothing would be trained: call requires_grad_(True) on those that are to be"
            )
        _refuse_lone_row(stage, data, training, processes)
        yield stage


def identity_of(stage: Stage) -> dict[str, Any]:
    """What a run's result depends on besides its options: code of the user's own, frozen parameters."""
    student = unwrap(stage.student)
    own = {type(part) for part in student.modules() if is_user_code(type(part))}
    found = user_code(*sorted(own, key=lambda kind: f"{kind.__module__}:{kind.__qualname__}"))
    about: dict[str, Any] = {"network": found["code"]} if found else {}
    if holds_user_code(stage.objective):
        about["objective"] = identity(stage.objective)
    if frozen := not_trained(student):
        about["frozen"] = sorted(frozen)
    return about


def code_of_net(net: nn.Module) -> dict[str, Any]:
    """The function of a user's own that builds it; nothing for halfstep's."""
    name = recipe(net)[0]
    made: Any = getattr(net, "made_by", None) or (import_function(name) if ":" in name else None)
    return {} if made is None else {"net code": identity(made)}


def _refuse_lone_row(
    stage: Stage, data: Data, training: TrainingConfig, processes: Processes
) -> None:
    """`ConfigError` where the smallest micro-batch is one row, and one row cannot be trained on.

    A batch norm has no variance of it, and some losses compare rows.
    """
    share = processes.share(training.batch_size)
    rows, micro = share.stop - share.start, training.micro_batch_size
    if min(part.stop - part.start for part in micro_batches(share, micro)) > 1:
        return
    student, device = stage.student.to(processes.device), processes.device
    kept = [(buffer, buffer.clone()) for buffer in student.buffers()]
    objective, said = stage.objective.at(0.0), ""
    draw = Draw.all(torch.Generator(device).manual_seed(0), 1)
    with torch.no_grad(), fork_rng(0), evaluating(student):
        to_train(student)
        try:
            objective(
                student,
                data.training_batch(torch.zeros(1, dtype=torch.long), draw).to(device),
                draw,
            )
        except ConfigError as error:
            said = str(error)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            said = "a batch norm has no variance of one row"
        finally:
            for buffer, value in kept:
                buffer.copy_(value)
    if not said:
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
        f"of a batch of {training.batch_size} {where} has one row, and {said}: write {instead} "
        f"(command line: --{instead.replace('_', '-').replace('=', ' ')})"
    )
