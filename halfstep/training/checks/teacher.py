"""Try a method's first student on samples of the teacher's shape, and on data, before there is a folder."""

from collections.abc import Iterator
from dataclasses import replace

import torch

from halfstep.batch import Cond
from halfstep.data import Data, Dataset, Latents, NoData
from halfstep.diffusion.denoiser import Denoiser
from halfstep.errors import ConfigError
from halfstep.methods.classifiers.feature_terms import pairs_of
from halfstep.methods.classifiers.knowledge import KnowledgeDistillation
from halfstep.methods.stages import Stage
from halfstep.models.end_time_embedding import is_told_end
from halfstep.models.eval_mode import evaluating
from halfstep.models.guidance_embedding import reads_scale
from halfstep.models.head_bank import heads_of
from halfstep.models.hooks import unwrap
from halfstep.pipeline import Pipeline
from halfstep.pipeline.conditioning import condition
from halfstep.rng import Draw
from halfstep.training.config import TrainingConfig

AS_TEACHER = (
    "the student's network does not take the teacher's samples",
    "give it all of its options in student (command line: --student NAME VALUE ...)",
)
DATA_DECIDE = (
    "the network does not take the data's samples",
    "leave out those of its options that the data decide (command line: of --net-config)",
)


def checked_on_start(
    stages: Iterator[Stage], teacher: Pipeline, advice: tuple[str, str] = AS_TEACHER
) -> Iterator[Stage]:
    """The same stages, after the first student was called with the last class, and with no class.

    `ConfigError` if it does not take the teacher's samples and conditions.

    advice  the error's two parts: what is wrong, and what to write
    """
    if (first := next(stages, None)) is None:
        return iter(())
    student = unwrap(first.student).trainable_copy()  # type: ignore[operator]  # a Denoiser
    _try(student, first, teacher, advice)
    return with_first(first, stages)


def with_first(first: Stage, others: Iterator[Stage]) -> Iterator[Stage]:
    """The first stage, made before there is a folder, and the others; each is freed after its use."""
    yield first
    del first  # or its student would stay in memory while all the others are trained
    yield from others


@torch.no_grad()
def _try(student: Denoiser, stage: Stage, teacher: Pipeline, advice: tuple[str, str]) -> None:
    classes = len(teacher.class_names)
    guidance_range = stage.guidance_range or teacher.guidance_range
    student.eval().autocast = None
    # A table of labels that is too short lacks the last rows.
    labels = [classes - 1, *([] if teacher.null is None else [teacher.null])] if classes else None
    n = len(labels or [0])
    scale = guidance_range[0] if guidance_range and reads_scale(student.net) else None
    cond = condition(teacher, n, labels=labels, guidance_scale=scale)
    device = next(student.parameters(), torch.empty(0)).device
    x, shapes, problem = torch.zeros(n, *teacher.shape, device=device), list[list[int]](), ""
    expected = [n, student.parameterisation.outputs * teacher.shape[0], *teacher.shape[1:]]
    student.net.register_forward_hook(lambda net, args, out: shapes.append(list(out.shape)))
    try:
        student(x, torch.full((n,), 0.5, device=device), None if cond is None else cond.to(device))
    except ConfigError:
        if shapes in ([], [expected]):
            raise
    except (RuntimeError, TypeError, ValueError, IndexError, KeyError) as error:
        problem = str(error).splitlines()[0]
    if not problem and shapes != [expected]:
        problem = f"it answers in the shape {shapes[0]} instead of {expected}"
    if problem:
        of = f" of {classes} class{'es' * (classes > 1)}" if classes else ""
        raise ConfigError(f"{advice[0]}, {list(teacher.shape)}{of} ({problem}): {advice[1]}")


def checked_on_data(stages: Iterator[Stage], data: Data, device: torch.device) -> Iterator[Stage]:
    """The same stages, after the first student's network was called with two samples of the data.

    So a missing condition, or one that the network does not read, is refused before there is a folder.
    """
    if (first := next(stages, None)) is None:
        return iter(())
    student = unwrap(first.student)
    if isinstance(student, Denoiser) and isinstance(data, Dataset | Latents | NoData):
        batch = data.batch(torch.arange(2) % len(data)).to(device)
        # In the dtype that training draws times and scales in.
        times = torch.ones_like(Draw.all(torch.Generator(device).manual_seed(0), 2).uniform())
        cond = batch.cond
        if first.guidance_range is not None and reads_scale(student.net):
            cond = replace(cond or Cond(), guidance_scale=first.guidance_range[0] * times)
        if count := heads_of(student.net):
            cond = replace(cond or Cond(), heads=times.new_full((2, count), 1 / count))
        if is_told_end(student.net):
            cond = replace(cond or Cond(), t_end=torch.zeros_like(times))
        with torch.no_grad(), evaluating(student.to(device)):
            student.raw_output(batch.x0, times, cond)
    return with_first(first, stages)


def refuse_unread(training: TrainingConfig, method: KnowledgeDistillation) -> None:
    """`ConfigError` for settings that the training of a classifier does not support."""
    if training.precision != "fp32":
        raise ConfigError(
            f"classifiers are distilled in fp32, and precision is '{training.precision}': leave it out"
        )
    if training.compile and pairs_of(method.live):
        raise ConfigError(
            "a compiled student does not show its features, which a term compares: leave compile out"
        )


def checked_on_first(stages: Iterator[Stage], data: Data, device: torch.device) -> Iterator[Stage]:
    """The same stages, after the first one's objective was computed on two samples, without training.

    So teacher, student or data that do not fit each other are refused before there is a folder.
    """
    if (first := next(stages, None)) is None:
        return iter(())
    rows = torch.arange(2) % len(data)
    draw = Draw.all(torch.Generator(device).manual_seed(0), 2)
    with torch.no_grad(), evaluating(first.student.to(device)):
        first.objective(first.student, data.training_batch(rows, draw).to(device), draw)
    return with_first(first, stages)
