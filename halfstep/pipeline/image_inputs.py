"""Images to edit: the time at which sampling starts from them, and the mask of the part to repaint."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from halfstep.config.validate import is_valid, shown
from halfstep.diffusion.samplers import inpainting, noised, Step
from halfstep.diffusion.schedules import Schedule
from halfstep.diffusion.time_grids import Times
from halfstep.errors import ConfigError
from halfstep.models.codec import Codec, sample_latents
from halfstep.pixels import as_floats, ends, in_range, refuse_no_tensor


@dataclass(frozen=True)
class ImageStart:
    """The images that sampling starts from, one a sample, or None for sampling from noise.

    images    float32 [n, C, H, W], or in the shape of the model's samples
    mask      bool, as images: True where they are repainted; None repaints all
    strength  the time at which sampling starts from them; 1 starts from noise alone
    """

    images: Tensor | None = None
    mask: Tensor | None = None
    strength: float = 1.0

    def __getitem__(self, rows: slice) -> "ImageStart":
        return self._each(lambda value: value[rows])

    def to(self, device: torch.device) -> "ImageStart":
        return self._each(lambda value: value.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "ImageStart":
        images, mask = (v if v is None else change(v) for v in (self.images, self.mask))
        return replace(self, images=images, mask=mask)

    def of_model(self, codec: Codec | None) -> "ImageStart":
        """The same in the model's space; a latent is repainted if any of its pixels is.

        At strength 1 the pixels in the mask change nothing: the codec, whose latents depend on pixels far
        around them, reads gray there.
        """
        if codec is None or self.images is None:
            return self
        images, mask = self.images, self.mask
        if mask is not None and self.strength == 1:
            images = torch.where(mask, 0.0, images)
        x0 = latents_of(codec, images)
        if mask is not None:
            pixels = mask.any(1, keepdim=True).float()
            mask = (F.max_pool2d(pixels, codec.factor) > 0).expand_as(x0)
        return replace(self, images=x0, mask=mask)

    def grid(self, times: Times, *, student: bool) -> Times:
        """The part of the grid that is sampled; a teacher may start between two of its times."""
        if self.strength == 1:
            return times
        starts = [k for k, t in enumerate(times[:-1]) if abs(t - self.strength) < 1e-6]
        if starts:
            return times[starts[0] :]
        if student:
            raise ConfigError(
                f"this student begins at a time of its {len(times) - 1}-step grid and {self.strength:g} is "
                f"none: write strength={' or '.join(f'{t:g}' for t in times[:-1])}"
            )
        return (self.strength, *(t for t in times if t < self.strength))

    def begin(self, schedule: Schedule, noise: Tensor, t: float) -> Tensor:
        """The noisy images that sampling starts from at time t."""
        if self.images is None or (self.strength == 1 and self.mask is None):
            return noise
        noisy = noised(schedule, self.images, noise, t)
        if self.strength == 1 and self.mask is not None:
            return torch.where(self.mask, noise, noisy)
        return noisy

    def around(self, noise: Tensor) -> Callable[[Step], Step]:
        """A wrapper of steps that repaints only the mask."""
        images, mask = self.images, self.mask
        if images is None or mask is None:
            return lambda step: step
        return lambda step: inpainting(step, mask, images, noise)

    def restore_unmasked(self, x: Tensor) -> Tensor:
        """Restore the pixels outside the mask to the bit, also after a codec's decoding."""
        if self.images is None or self.mask is None:
            return x
        return torch.where(self.mask, x, self.images)


@torch.no_grad()
def latents_of(codec: Codec | None, images: Tensor) -> Tensor:
    """The means of the images' latents, scaled; the images themselves without a codec."""
    if codec is None:
        return images
    moments = codec.moments(images)
    return sample_latents(moments, torch.zeros_like(moments.chunk(2, dim=1)[0]), codec.scale)


def image_start(
    n: int,
    shape: tuple[int, ...],
    codec: Codec | None,
    images: Tensor | None,
    mask: Tensor | None,
    strength: float,
) -> ImageStart:
    """Check the images that sampling starts from.

    shape  of one of the model's samples
    """
    if not (is_valid(strength, float) and 0 < strength <= 1):
        raise ConfigError(f"strength lies in (0, 1], got {shown(strength)}: 1 is the whole grid")
    if images is None:
        if mask is not None or strength != 1:
            raise ConfigError(
                "strength and mask are for editing images, and no images are given: give images, or leave "
                "both out"
            )
        return ImageStart()
    images = read_images(n, shape, codec, images)
    if mask is not None:
        refuse_no_tensor("mask", mask)
        if mask.dtype != torch.bool or not _fits(mask, images):
            raise ConfigError(
                "mask is true where a pixel is repainted: expected bool "
                f"{list(images.shape)}, dimensions of size 1 are broadcast, got {str(mask.dtype)[6:]} "
                f"{list(mask.shape)}: write for example mask > 0.5"
            )
        mask = mask.expand_as(images)
    return ImageStart(images, mask, strength)


def read_images(n: int, shape: tuple[int, ...], codec: Codec | None, images: Tensor) -> Tensor:
    """Read n images of the model's size as float32, in [-1, 1] for a model of pixels or points.

    `DataError` for values of another dtype or scale, `ConfigError` for another number or size.
    """
    images = as_floats(images)
    if codec is not None:
        shape = *images.shape[1:2], *(side * codec.factor for side in shape[1:])
    if images.shape != (n, *shape):
        raise ConfigError(
            f"{n} samples need {n} images of the size that this model makes, {list(shape)}: got shape "
            f"{list(images.shape)}"
        )
    if codec is None and len(shape) == 3 and shape[0] not in (1, 3):  # latents, of any range
        ends(images)
        return images.float()
    return in_range(images).float()


def check_noise(noise: Tensor | None, n: int, shape: tuple[int, ...]) -> None:
    """`ConfigError` for noise of another shape or dtype than n samples need."""
    if noise is None:
        return
    refuse_no_tensor("noise", noise)
    if noise.shape != (n, *shape):
        raise ConfigError(
            f"{n} samples need noise of shape {[n, *shape]}, got {list(noise.shape)}: `encode` returns it"
        )
    if not noise.is_floating_point():
        raise ConfigError(f"noise is floats around 0, got {noise.dtype}: `encode` returns it")
    if not noise.isfinite().all():
        raise ConfigError("some of the noise is nan or infinite: give other noise")


def _fits(mask: Tensor, images: Tensor) -> bool:
    return mask.ndim == images.ndim and all(
        a in (1, b) for a, b in zip(mask.shape, images.shape, strict=True)
    )
