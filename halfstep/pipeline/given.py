"""Images that samples are made of: where a walk begins with them, and what of them it keeps."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from halfstep.codec import Codec, drawn
from halfstep.config.validate import is_valid, shown
from halfstep.errors import ConfigError
from halfstep.pixels import as_floats, ends, in_range, refuse_no_tensor
from halfstep.samplers import keeping, noised, Step
from halfstep.schedules import Schedule
from halfstep.timegrids import Times


@dataclass(frozen=True)
class Given:
    """As many images as samples, or None, which leaves a walk as it is.

    images    float32 [n, C, H, W], or as the model's own samples are
    known     bool, as images: what is kept of them, or None for nothing
    strength  the time at which a walk begins with them; 1 is all of it, from noise alone
    """

    images: Tensor | None = None
    known: Tensor | None = None
    strength: float = 1.0

    def __getitem__(self, rows: slice) -> "Given":
        return self._each(lambda value: value[rows])

    def to(self, device: torch.device) -> "Given":
        return self._each(lambda value: value.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Given":
        images, known = (v if v is None else change(v) for v in (self.images, self.known))
        return replace(self, images=images, known=known)

    def of_model(self, codec: Codec | None) -> "Given":
        """The same in the model's own kind; a latent is known where all its pixels are.

        A walk from noise alone sees nothing of hidden pixels: a codec, whose latents know of pixels far
        around them, is shown gray for those.
        """
        if codec is None or self.images is None:
            return self
        images, known = self.images, self.known
        if known is not None and self.strength == 1:
            images = torch.where(known, images, 0.0)
        x0 = latents_of(codec, images)
        if known is not None:
            hidden = (~known).any(1, keepdim=True).float()
            known = (F.max_pool2d(hidden, codec.factor) == 0).expand_as(x0)
        return replace(self, images=x0, known=known)

    def grid(self, times: Times, *, student: bool) -> Times:
        """The part of the grid that is walked; a teacher's may begin between two of its times."""
        if self.strength == 1:
            return times
        here = [k for k, t in enumerate(times[:-1]) if abs(t - self.strength) < 1e-6]
        if here:
            return times[here[0] :]
        if student:
            raise ConfigError(
                f"this student begins at a time of its {len(times) - 1}-step grid and {self.strength:g} is "
                f"none: write strength={' or '.join(f'{t:g}' for t in times[:-1])}"
            )
        return (self.strength, *(t for t in times if t < self.strength))

    def begin(self, schedule: Schedule, noise: Tensor, t: float) -> Tensor:
        """What a walk from time t takes for its noise."""
        if self.images is None or (self.strength == 1 and self.known is None):
            return noise
        begun = noised(schedule, self.images, noise, t)
        if self.strength == 1 and self.known is not None:
            return torch.where(self.known, begun, noise)
        return begun

    def around(self, noise: Tensor) -> Callable[[Step], Step]:
        """What makes a step keep what is known."""
        images, known = self.images, self.known
        if images is None or known is None:
            return lambda step: step
        return lambda step: keeping(step, known, images, noise)

    def put_back(self, x: Tensor) -> Tensor:
        """Samples with the known pixels to the bit, also where a codec decoded them."""
        if self.images is None or self.known is None:
            return x
        return torch.where(self.known, self.images, x)


@torch.no_grad()
def latents_of(codec: Codec | None, images: Tensor) -> Tensor:
    """The means of the images' latents, scaled; the images themselves where there is no codec."""
    if codec is None:
        return images
    moments = codec.moments(images)
    return drawn(moments, torch.zeros_like(moments.chunk(2, dim=1)[0]), codec.scale)


def given(
    n: int,
    shape: tuple[int, ...],
    codec: Codec | None,
    images: Tensor | None,
    known: Tensor | None,
    strength: float,
) -> Given:
    """What was given, checked.

    shape  of one of the model's own samples
    """
    if not (is_valid(strength, float) and 0 < strength <= 1):
        raise ConfigError(f"strength lies in (0, 1], got {shown(strength)}: 1 is all of the walk")
    if images is None:
        if known is not None or strength != 1:
            raise ConfigError(
                "strength and known say what becomes of images, and there are none: give images, or leave "
                "both out"
            )
        return Given()
    images = read_images(n, shape, codec, images)
    if known is not None:
        refuse_no_tensor("known", known)
        if known.dtype != torch.bool or not _fits(known, images):
            raise ConfigError(
                f"known says of every pixel whether it is kept: expected bool {list(images.shape)}, or 1 "
                f"where all are alike, got {str(known.dtype)[6:]} {list(known.shape)}"
            )
        known = known.expand_as(images)
    return Given(images, known, strength)


def read_images(n: int, shape: tuple[int, ...], codec: Codec | None, images: Tensor) -> Tensor:
    """n images of the size that the model makes, float32: of a model of pixels or points in [-1, 1].

    `DataError` for values of another kind or scale, `ConfigError` for another number or size.
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
    """`ConfigError` unless there is none, or as much as the walks take."""
    if noise is None:
        return
    refuse_no_tensor("noise", noise)
    if noise.shape != (n, *shape):
        raise ConfigError(
            f"{n} samples need noise of shape {[n, *shape]}, got {list(noise.shape)}: `encode` returns it"
        )
    if not noise.is_floating_point():
        raise ConfigError(
            f"noise is floats, about as many below 0 as above, got {noise.dtype}: `encode` returns it"
        )
    if not noise.isfinite().all():
        raise ConfigError("some of the noise is nan or infinite: give other noise")


def _fits(known: Tensor, images: Tensor) -> bool:
    return known.ndim == images.ndim and all(
        a in (1, b) for a, b in zip(known.shape, images.shape, strict=True)
    )
