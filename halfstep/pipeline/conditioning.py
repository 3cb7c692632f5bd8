"""The conditions of samples: labels or texts, and a guidance scale."""

from collections.abc import Sequence

import torch
from torch import Tensor

from halfstep.batch import Cond, Null
from halfstep.config.validate import is_valid, shown
from halfstep.diffusion.denoiser import Denoiser, Denoises
from halfstep.diffusion.guidance import Guided
from halfstep.errors import ConfigError
from halfstep.models.codec import Texts
from halfstep.pixels import refuse_no_tensor


def condition(
    n: int,
    first: int,
    *,
    class_names: int,
    null: int | None,
    empty: Tensor | None,
    texts: Texts | None,
    labels: Sequence[int] | None,
    prompts: Sequence[str] | None,
    encoder_hidden_states: Tensor | None,
    guidance_scale: float | None = None,
) -> Cond | None:
    """The conditions of n samples; `ConfigError` for those that the network does not read, or lacks."""
    label = _labels(n, first, class_names, null, labels)
    if empty is None and (prompts is not None or encoder_hidden_states is not None):
        raise ConfigError(
            "this pipeline reads no texts: leave prompts and encoder_hidden_states out"
        )
    states = None if empty is None else _states(n, empty, texts, prompts, encoder_hidden_states)
    scale = None if guidance_scale is None else torch.full((n,), float(guidance_scale))
    is_empty = label is None and states is None and scale is None
    return None if is_empty else Cond(label, states, scale)


def guided(
    denoiser: Denoiser,
    guidance_scale: float,
    guidance_range: tuple[float, float] | None,
    unconditional: Null | None,
) -> Denoises:
    """The denoiser at this guidance scale: itself if it takes the scale as an input, or if it is 1.

    guidance_range  of the scales that the network takes as an input, or None
    unconditional   the null label, the states of the empty text, or None
    """
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
        return denoiser
    if guidance_scale == 1:
        return denoiser
    if unconditional is None:
        raise ConfigError(
            "this pipeline has no null class and cannot be guided: write guidance_scale=1"
        )
    return Guided(denoiser, guidance_scale, unconditional)


def same_states(states: Tensor, empty: Tensor) -> bool:
    """Whether two encoders agree about the empty text, up to the rounding on disk."""
    near = 0.02 * float(empty.abs().max())
    return states.shape == empty.shape and torch.allclose(
        states.to(empty), empty, rtol=0.02, atol=near
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


def _states(
    n: int,
    empty: Tensor,
    texts: Texts | None,
    prompts: Sequence[str] | None,
    encoder_hidden_states: Tensor | None,
) -> Tensor:
    if prompts is not None and encoder_hidden_states is not None:
        raise ConfigError(
            "prompts and encoder_hidden_states say the same in two ways: give one of them"
        )
    if prompts is not None:
        if texts is None:
            raise ConfigError(
                "this pipeline has no encoder for its prompts: give it one by with_texts(...) (command "
                "line: --text FOLDER), or their states as encoder_hidden_states"
            )
        encoder_hidden_states = texts.encode(list(prompts))
    if encoder_hidden_states is None:
        return empty.expand(n, *empty.shape)
    refuse_no_tensor("encoder_hidden_states", encoder_hidden_states)
    if encoder_hidden_states.shape != (n, *empty.shape):
        raise ConfigError(
            f"{n} samples of this pipeline need {n} prompts, or encoder_hidden_states of shape "
            f"{[n, *empty.shape]}, got states of shape {list(encoder_hidden_states.shape)}"
        )
    if not encoder_hidden_states.is_floating_point() or not encoder_hidden_states.isfinite().all():
        raise ConfigError(
            "encoder_hidden_states are the states of texts, finite floats, got "
            f"{encoder_hidden_states.dtype} or some nan: give what the text encoder returns"
        )
    return encoder_hidden_states
