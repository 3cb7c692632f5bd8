"""The forms of drawn samples: a tensor, or PIL images."""

from collections.abc import Sequence
from typing import get_args, Literal, TYPE_CHECKING

from torch import Tensor

from halfstep.errors import ConfigError, unknown
from halfstep.pictures import to_uint8

if TYPE_CHECKING:
    from PIL.Image import Image

Output = Literal["tensor", "pil"]
TENSOR = "write output='tensor'"


def check_output(output: str, shape: Sequence[int], *, has_codec: bool, latents: bool) -> None:
    """`ConfigError` for an unknown output, and for PIL images of samples that are no images.

    shape      of one sample, or of its latent
    has_codec  whether samples are decoded from latents
    latents    whether they stay latents
    """
    if output not in get_args(Output):
        raise unknown("output", output, get_args(Output))
    if output != "pil":
        return
    if latents and has_codec:
        raise ConfigError(
            f"latents are no images, which output='pil' needs: {TENSOR}, or leave latents out"
        )
    if len(shape) != 3 or not (has_codec or shape[0] in (1, 3)):
        kind = "points" if len(shape) == 1 else "samples"
        raise ConfigError(
            f"output='pil' is for images of 1 or 3 channels, and this pipeline draws {kind} of shape "
            f"{list(shape)}: {TENSOR}"
        )


def as_pil(images: Tensor) -> "list[Image]":
    """PIL images, gray or RGB, of [N, 1 or 3, H, W] in [-1, 1]; values beyond are clamped.

    `DataError` for pixels that are nan or infinite, `ConfigError` for other channels.
    """
    from PIL import Image  # which a command without pictures does not import

    pixels = to_uint8(images)
    return [Image.fromarray(x.squeeze(-1) if x.shape[-1] == 1 else x) for x in pixels]
