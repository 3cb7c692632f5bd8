"""The conditions of samples: labels or texts, named tensors, and a guidance scale."""

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from halfstep.batch import Cond, Null, null_rows, null_values
from halfstep.config.validate import is_valid, shown
from halfstep.diffusion.denoiser import Denoises
from halfstep.diffusion.guidance import Guided
from halfstep.errors import ConfigError, unknown
from halfstep.identity import sha256_of
from halfstep.pipeline.base import PipelineFields, SIZES
from halfstep.pixels import refuse_no_tensor

STATES = "encoder_hidden_states"
Prompts = str | Sequence[str] | Cond
"""One text for all samples, one a sample, or the conditions of texts, as `Texts.conditions` returns them."""


def condition(
    pipeline: PipelineFields,
    n: int,
    first: int = 0,
    *,
    labels: Sequence[int] | None = None,
    prompts: Prompts | None = None,
    encoder_hidden_states: Tensor | None = None,
    added: Mapping[str, Tensor] | None = None,
    guidance_scale: float | None = None,
) -> Cond | None:
    """The conditions of n samples; `ConfigError` for those that the network does not read, or lacks.

    Texts and named tensors that are not given are those of the empty text.

    first  number of the first sample, for the labels in turn
    """
    label = _labels(n, first, len(pipeline.class_names), pipeline.null, labels)
    given: dict[str, Tensor] = {}
    if prompts is not None:
        if encoder_hidden_states is not None:
            raise ConfigError(
                "prompts and encoder_hidden_states say the same in two ways: give one of them"
            )
        given = _encoded(pipeline, prompts)
        if isinstance(prompts, str):
            given = {name: value.expand(n, *value.shape[1:]) for name, value in given.items()}
    if encoder_hidden_states is not None:
        given = {STATES: encoder_hidden_states}
    tensors = _filled(pipeline, n, {**given, **_known(pipeline, added or {})})
    scale = None if guidance_scale is None else torch.full((n,), float(guidance_scale))
    states = tensors.pop(STATES, None)
    is_empty = label is None and states is None and scale is None and not tensors
    return None if is_empty else Cond(label, states, scale, tensors)


def null_condition(
    pipeline: PipelineFields, n: int, guidance_scale: float, prompts: Prompts | None
) -> Null | None:
    """The null condition of n samples: the pipeline's, or the condition of these negative prompts.

    `ConfigError` for negative prompts that would change nothing.

    prompts  one text for all samples, or one a sample; None is the pipeline's null condition
    """
    if prompts is None:
        return pipeline.unconditional
    if pipeline.guidance_range is not None:
        raise ConfigError(
            "this student takes the guidance scale as an input, with its teacher's null condition folded in, "
            "so that negative prompts change nothing: leave them out, or sample its teacher"
        )
    if guidance_scale == 1:
        raise ConfigError(
            "guidance_scale is 1, where guidance is off and negative prompts change nothing: write for "
            "example guidance_scale=4, or leave them out"
        )
    encoded = _encoded(pipeline, prompts)
    rows = max(map(len, encoded.values()), default=1)
    if rows not in (1, n):
        raise ConfigError(
            f"{n} samples need one negative prompt, or {n}, got {rows}: give one a sample"
        )
    tensors = _filled(pipeline, rows, encoded)
    label = None if pipeline.null is None else torch.full((rows,), pipeline.null)
    added = {name: v for name, v in tensors.items() if name not in (STATES, *SIZES)}
    return Cond(label, tensors.get(STATES), added=added)


def guided(pipeline: PipelineFields, guidance_scale: float, null: Null | None) -> Denoises:
    """The denoiser at this guidance scale: itself if it takes the scale as an input, or if it is 1.

    null  the null condition, or None
    """
    guidance_range = pipeline.guidance_range
    if not is_valid(guidance_scale, float):
        raise ConfigError(
            f"guidance_scale is a finite number, got {shown(guidance_scale)}: write for example 2"
        )
    if guidance_range is not None:
        low, high = guidance_range
        if not low <= guidance_scale <= high:
            raise ConfigError(
                f"this student takes guidance scales from {low:g} to {high:g}, got "
                f"{guidance_scale:g}: write guidance_scale={min(max(guidance_scale, low), high):g}"
            )
        return pipeline.denoiser
    if guidance_scale == 1:
        return pipeline.denoiser
    if null is None:
        raise ConfigError(
            "this pipeline has no null class and cannot be guided: write guidance_scale=1"
        )
    return Guided(pipeline.denoiser, guidance_scale, null, norm=pipeline.guidance_norm)


def model_inputs(
    pipeline: PipelineFields,
    n: int,
    first: int,
    guidance_scale: float,
    negative_prompts: Prompts | None,
    **given: Any,
) -> Callable[[slice], tuple[Denoises, Cond | None]]:
    """A function from rows of n samples to the denoiser at this guidance scale, and their conditions.

    given  the other arguments of `condition`
    """
    null = null_condition(pipeline, n, guidance_scale, negative_prompts)
    guided(pipeline, guidance_scale, null)  # refused before the first batch
    scale = guidance_scale if pipeline.takes_scale else None
    cond, device = condition(pipeline, n, first, guidance_scale=scale, **given), pipeline.device

    def of(rows: slice) -> tuple[Denoises, Cond | None]:
        part = None if null is None else null_rows(null, rows)
        part = part.to(device) if isinstance(part, Cond | Tensor) else part
        return guided(pipeline, guidance_scale, part), None if cond is None else cond[rows].to(
            device
        )

    return of


def defaults_of(empty_text: Cond) -> dict[str, Any]:
    """The fields `empty` and `added` of a pipeline, from the conditions of the empty text in one row."""
    states = empty_text.encoder_hidden_states
    added = {name: value[0] for name, value in empty_text.added.items()}
    return {"empty": None if states is None else states[0], "added": added}


def differing(empty_text: Cond, pipeline: PipelineFields) -> list[str]:
    """The names of the pipeline's conditions that have another value in these of the empty text.

    Floating-point values are compared up to the rounding on disk.  Named tensors that `empty_text` lacks
    are not compared.
    """
    theirs, ours = null_values(empty_text), null_values(pipeline.text_defaults)
    if STATES in ours and STATES not in theirs:
        return [STATES]
    return [name for name in ours if name in theirs and not _same(theirs[name], ours[name])]


def digest_of_defaults(pipeline: PipelineFields) -> str | None:
    """sha256 of the states and the named tensors of the empty text; None without them."""
    defaults = null_values(pipeline.text_defaults)
    return sha256_of(chain.from_iterable(sorted(defaults.items()))) if defaults else None


def _same(values: Tensor, expected: Tensor) -> bool:
    if not expected.is_floating_point():
        return torch.equal(values.to(expected), expected)
    near = 0.02 * float(expected.abs().max()) if expected.numel() else 0.0
    return values.shape == expected.shape and torch.allclose(
        values.to(expected), expected, rtol=0.02, atol=near
    )


def _labels(
    n: int, first: int, class_names: int, null: int | None, labels: Sequence[int] | None
) -> Tensor | None:
    if not class_names:
        if labels is not None:
            raise ConfigError("this pipeline has no classes: leave labels out")
        return None
    if labels is None:
        return torch.arange(first, first + n) % class_names
    labels, rows = list(labels), class_names + (null is not None)
    if len(labels) != n or not all(label in range(rows) for label in labels):
        listed = ", ".join(map(str, labels[:8])) + (", ..." if len(labels) > 8 else "")
        raise ConfigError(
            f"{n} samples need {n} labels from 0 to {rows - 1}, got {len(labels)}: ({listed})"
        )
    return torch.tensor(labels, dtype=torch.int64)


def _encoded(pipeline: PipelineFields, prompts: Prompts) -> dict[str, Tensor]:
    """The conditions of these prompts that the pipeline reads, by name."""
    if isinstance(prompts, Cond):
        return _read_by(pipeline, prompts)
    if pipeline.empty is None and not pipeline.added:
        raise ConfigError(
            "this pipeline reads no texts: leave prompts and encoder_hidden_states out"
        )
    if pipeline.texts is None:
        raise ConfigError(
            "this pipeline has no encoder for its prompts: give it one by with_texts(...) (command "
            "line: --text FOLDER), or their states as encoder_hidden_states"
        )
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    return _read_by(pipeline, pipeline.texts.conditions(texts))


def _read_by(pipeline: PipelineFields, cond: Cond) -> dict[str, Tensor]:
    """The states and named tensors of a condition that the pipeline reads."""
    named = cond.named()
    return {name: named[name] for name in null_values(pipeline.text_defaults) if name in named}


def _known(pipeline: PipelineFields, added: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The named tensors; `ConfigError` for one that the pipeline does not read."""
    for name in added:
        if not pipeline.added:
            raise ConfigError(f"this pipeline reads no named tensors, got {name}: leave added out")
        if name not in pipeline.added:
            raise unknown("named tensor of this pipeline called", name, pipeline.added)
    return added


def _filled(pipeline: PipelineFields, n: int, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The states and named tensors of n samples: those given, and the empty text's in place of others."""
    defaults = null_values(pipeline.text_defaults)
    if STATES in given and STATES not in defaults:
        raise ConfigError(
            "this pipeline reads no texts: leave prompts and encoder_hidden_states out"
        )
    for name, value in given.items():
        _check(name, value, n, defaults[name])
    return {
        name: given.get(name, default).to(default.dtype).expand(n, *default.shape[1:])
        for name, default in defaults.items()
    }


def _check(name: str, value: Tensor, n: int, default: Tensor) -> None:
    """`ConfigError` unless a condition has the shape and kind of its default value, one row a sample."""
    refuse_no_tensor(name, value)
    shape, rows = list(default.shape[1:]), (n,) if name == STATES else (n, 1)
    if list(value.shape) not in [[count, *shape] for count in rows]:
        prompts, all_rows = (
            (f"{n} prompts, or ", "") if name == STATES else ("", f" or {[1, *shape]}")
        )
        raise ConfigError(
            f"{n} samples of this pipeline need {prompts}{name} of shape {[n, *shape]}{all_rows}, got shape "
            f"{list(value.shape)}"
        )
    if not torch.can_cast(value.dtype, default.dtype) or not value.isfinite().all():
        kind = str(default.dtype).removeprefix("torch.")
        raise ConfigError(
            f"{name} holds finite values of {kind}, as the text encoder returns, got {value.dtype} or some "
            "nan: give what the text encoder returns"
        )
