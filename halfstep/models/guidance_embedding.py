"""The guidance scale as an input of a network: its Fourier features and their embedding.

Meng et al., "On Distillation of Guided Diffusion Models", CVPR 2023, section 3.1: Fourier features of w are
embedded like the time.  w = scale - 1, as in diffusers.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, ExitStack
from math import log

import torch
from torch import nn, Tensor

from halfstep.config.validate import is_valid
from halfstep.errors import ConfigError

NO_SCALE = "this network takes its guidance scale as an input: give cond=Cond(guidance_scale=...)"


def guidance_features(w: Tensor, width: int) -> Tensor:
    """sin(1000 w f_k), then cos(1000 w f_k), with f_k = 10000^(-k / (width / 2 - 1)).

    As diffusers' `get_guidance_scale_embedding`, in w's dtype, at least float32.

    w      float [B], guidance scale - 1
    width  even, 4 or more
    """
    dtype, half = torch.promote_types(w.dtype, torch.float32), width // 2
    k = torch.arange(half, dtype=dtype, device=w.device)
    angle = 1000 * w.to(dtype)[:, None] * torch.exp(-log(10000) * k / (half - 1))
    return torch.cat([angle.sin(), angle.cos()], dim=1)


class GuidanceEmbedding(nn.Module):
    """Maps guidance scales [B] to [B, width].  Its last layer starts at zero, so that nothing is added."""

    def __init__(self, features: int, width: int):
        super().__init__()
        check_features(features)
        self.features = features
        self.enter, self.leave = nn.Linear(features, width), nn.Linear(width, width)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, scale: Tensor | None) -> Tensor:
        if scale is None:
            raise ConfigError(NO_SCALE)
        features = guidance_features(scale - 1, self.features).to(self.enter.weight.dtype)
        out: Tensor = self.leave(nn.functional.silu(self.enter(features)))
        return out


def check_scales(scale: Tensor | None, x: Tensor) -> None:
    """`ConfigError` unless there is one scale per sample of x."""
    if scale is not None and scale.shape != x.shape[:1]:
        raise ConfigError(
            f"guidance_scale must have one scale per sample: expected shape [{len(x)}], got "
            f"{list(scale.shape)}"
        )


def reads_scale(net: nn.Module) -> bool:
    """Whether a network takes its guidance scale as an input; one that does not say what it reads may."""
    return "guidance_scale" in getattr(net, "reads", ("guidance_scale",))


def check_features(features: int) -> None:
    """`ConfigError` for an invalid number of features."""
    if not is_valid(features, int) or not 4 <= features <= 2**16 or features % 2:
        raise ConfigError(
            "guidance_embed_dim is the number of features of the scale, a sine and a cosine each, got "
            f"{features}: write an even number from 4, for example 256"
        )


@contextmanager
def adding(value: Tensor | None, modules: Iterable[nn.Module]) -> Iterator[None]:
    """Add `value` to the outputs of these modules during the block; None adds nothing.

    For networks whose time embedding takes no second input.
    """
    with ExitStack() as stack:
        if value is not None:

            def add(module: nn.Module, inputs: object, out: Tensor) -> Tensor:
                return out + value.to(out.dtype)

            for module in modules:
                stack.callback(module.register_forward_hook(add).remove)
        yield
