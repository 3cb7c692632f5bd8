"""Augmentation: random views of images, drawn and applied by kornia (extra `augment`).

kornia was chosen by measurement (see LOG.md); it is imported when the first image is augmented.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from typing import Annotated, Any

import torch
from annotated_types import Ge, Le
from torch import Tensor
from torch.nn import functional as F

from halfstep.config.validate import Seed, Validated
from halfstep.errors import ConfigError, unknown
from halfstep.rng import Draw, key

Parameters = dict[str, Tensor]
"""The random parameters of some images, one row each."""
ImagesOf = Callable[[Tensor], Tensor]
"""A function from rows of the data set, int64 [B], to their original images."""

STEPS = {
    "flip": "half of the images are mirrored left to right",
    "crop": "a frame of an eighth of the side, black, and a random crop of the old size (4 of 32: CIFAR's)",
    "zoom": "a random part of half the area or more, its sides 3 : 4 to 4 : 3, at the old size",
    "report": "enlarged from 224 to 230, with a black frame where it is not square; a random crop of 224 (of "
    "other sizes in proportion): what the report on knowledge distillation did after mirroring",
    "mixup": "a share of another image, uniform in [0, 1) (Zhang et al. 2018 with alpha 1), without a label",
}
BLOCK = 1024
"""The number of images whose parameters are drawn together: an image's draw depends on its block alone."""
BLACK = -1.0


@dataclass(frozen=True, kw_only=True)
class Augmentation(Validated):
    """The random views of images that training uses.

    Args:
        steps: names of `STEPS`, applied in this order: mixup (which comes first), flip, crop, zoom,
            report.
        views: number of views of an image, itself included. The others are functions of (seed, row, view)
            alone, so that a teacher's logits can be cached. 0: a new view every time.
        seed: the seed of the views.

    Raises:
        ConfigError: unknown steps, a single view, and where kornia is not installed.
    """

    steps: tuple[str, ...]
    views: Annotated[int, Ge(0), Le(2**31)] = 0
    seed: Seed = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for step in self.steps:
            if step not in STEPS:
                raise unknown("augmentation", step, STEPS)
        if not self.steps or len(set(self.steps)) < len(self.steps) or "mixup" in self.steps[1:]:
            raise ConfigError(
                f"the augmentation ({' '.join(self.steps) or 'nothing'}) names each step once, mixup "
                "first: write for example mixup flip crop"
            )
        if self.views == 1:
            raise ConfigError(
                f"an augmentation with {self.views} views is the image itself: write 2 or more views, or "
                "0 for a new one every time"
            )
        if find_spec("kornia") is None:
            raise ConfigError(
                "images are augmented by kornia, which is not installed: run pip install "
                "'halfstep[augment]', or leave the augmentation out"
            )

    @property
    def mixes(self) -> bool:
        """Whether images are mixed with others, and so lose their labels."""
        return "mixup" in self.steps

    def choose(self, rows: Tensor, draw: Draw) -> Tensor | None:
        """A random view number for each of these rows.

        Args:
            rows: int64 [B], rows of the data.
            draw: the randomness of the update.

        Returns:
            int64 [B]; None without a number of views.
        """
        return draw.integers(self.views).to(rows.device) if self.views else None

    def viewed(
        self, x0: Tensor, ids: Tensor, views: Tensor, *, images_of: ImagesOf, rows: int
    ) -> Tensor:
        """Images in these views; view 0 is the original.

        Args:
            x0: float [B, C, H, W] in [-1, 1].
            ids: int64 [B], the rows of the images.
            views: int64 [B], the view of each.
            images_of: function of rows, int64 [B], that returns images, for mixup.
            rows: the number of its rows.

        Returns:
            float [B, C, H, W].
        """
        changed = views.nonzero()[:, 0]
        if not len(changed):
            return x0
        drawn = self._drawn_once(x0.shape, ids[changed].tolist(), views[changed].tolist())
        augmented = _applied(self.steps, x0[changed], drawn, images_of, rows)
        return x0.index_copy(0, changed, augmented)

    def fresh(self, x0: Tensor, draw: Draw, *, images_of: ImagesOf, rows: int) -> Tensor:
        """Images in new random views.

        Args:
            x0: float [B, C, H, W] in [-1, 1].
            draw: the randomness of the update.
            images_of: function of rows, int64 [B], that returns images, for mixup.
            rows: the number of its rows.

        Returns:
            float [B, C, H, W].
        """
        device = draw.generator.device
        seed = int(torch.randint(2**31, (), generator=draw.generator, device=device))
        whole = _parameters(self.steps, tuple(x0.shape[2:]), seed, draw.whole)
        drawn = [{k: v[draw.rows] for k, v in parameters.items()} for parameters in whole]
        return _applied(self.steps, x0, drawn, images_of, rows)

    def _drawn_once(self, shape: torch.Size, ids: list[int], views: list[int]) -> list[Parameters]:
        """The parameters of these rows in these views, gathered from the blocks' cached draws."""
        groups = dict[tuple[int, int], list[int]]()
        for place, (row, view) in enumerate(zip(ids, views, strict=True)):
            groups.setdefault((view, row // BLOCK), []).append(place)
        order, parts = list[int](), list[tuple[Parameters, ...]]()
        for (view, block), places in groups.items():
            seed = key(self.seed, view, block)
            of_block = _cached_parameters(self.steps, tuple(shape[2:]), seed)
            at = torch.tensor([ids[place] % BLOCK for place in places])
            parts.append(
                tuple({k: v[at] for k, v in parameters.items()} for parameters in of_block)
            )
            order += places
        back = torch.tensor(order).argsort()
        return [
            {name: torch.cat([part[k][name] for part in parts])[back] for name in parts[0][k]}
            for k in range(len(self.steps))
        ]


def _applied(
    steps: tuple[str, ...], x: Tensor, drawn: list[Parameters], images_of: ImagesOf, rows: int
) -> Tensor:
    size = tuple(x.shape[2:])
    for step, drawn_here in zip(steps, drawn, strict=True):
        if step == "mixup":
            other = images_of((drawn_here["other"] * rows).long())
            share = drawn_here["share"].to(x.device, x.dtype)[:, None, None, None]
            x = share * x + (1 - share) * other
            continue
        canvas = _canvas(step, x)
        parameters = {name: value.to(x.device) for name, value in drawn_here.items()}
        parameters["forward_input_shape"] = torch.tensor(canvas.shape)
        x = _module(step, size)(canvas, params=parameters).to(x.dtype)
    return x


@lru_cache(maxsize=512)
def _cached_parameters(
    steps: tuple[str, ...], size: tuple[int, ...], seed: int
) -> tuple[Parameters, ...]:
    """The cached parameters of one block of images, some hundred bytes per image and step."""
    return tuple(_parameters(steps, size, seed, BLOCK))


def _parameters(
    steps: tuple[str, ...], size: tuple[int, ...], seed: int, count: int
) -> list[Parameters]:
    """kornia's parameters for `count` images of this size, a function of the seed."""
    parameters = list[Parameters]()
    with _seeded(seed):
        for step in steps:
            if step == "mixup":
                parameters.append(
                    {
                        "other": torch.rand(count, dtype=torch.float64),
                        "share": torch.rand(count, dtype=torch.float64),
                    }
                )
                continue
            canvas = _canvas(step, torch.zeros(1, 1, *size)).shape
            drawn = _module(step, size).forward_parameters((count, *canvas[1:]))
            drawn.pop("forward_input_shape")
            parameters.append(drawn)
    return parameters


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed torch's generator of the CPU, from which kornia draws, and restore its state afterwards."""
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before)


@lru_cache(maxsize=64)
def _module(step: str, size: tuple[int, ...]) -> Any:
    """kornia's module of a step, from the step's canvas to an image of this size."""
    from kornia import augmentation

    if step == "flip":
        return augmentation.RandomHorizontalFlip(p=0.5)
    if step == "zoom":
        return augmentation.RandomResizedCrop(size, scale=(0.5, 1.0), cropping_mode="slice")
    return augmentation.RandomCrop(size, cropping_mode="slice")


def _canvas(step: str, x: Tensor) -> Tensor:
    """The image that a step crops from, padded or enlarged."""
    height, width = x.shape[2:]
    if step == "crop":
        frame = math.ceil(max(height, width) / 8)
        return F.pad(x, [frame] * 4, value=BLACK)
    if step == "report":  # tf.image.resize_with_pad: the longer side to the whole
        side = math.ceil(max(height, width) * 230 / 224)
        scale = side / max(height, width)
        new = (round(height * scale), round(width * scale))
        x = F.interpolate(x, new, mode="bilinear", antialias=True)
        left, above = (side - new[1]) // 2, (side - new[0]) // 2
        return F.pad(x, [left, side - new[1] - left, above, side - new[0] - above], value=BLACK)
    return x
