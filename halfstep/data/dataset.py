"""Data sets in memory: values, labels and batches."""

from dataclasses import dataclass, replace
from functools import cached_property
from math import inf

import torch
from torch import Tensor

from halfstep.batch import Batch, completed, Cond
from halfstep.config.validate import Share, validate
from halfstep.data.augment import Augmentation
from halfstep.data.label_subsets import NONE, some_of_each
from halfstep.data.skipped import Skipped
from halfstep.errors import DataError
from halfstep.identity import sha256_of
from halfstep.pixels import refuse_halves, refuse_other_bytes, scaled
from halfstep.rng import Draw, key


@dataclass(frozen=True, eq=False)
class Dataset:
    """Values and labels in memory, one row per sample.

    Args:
        values: uint8 [N, C, H, W] images, or float32 [N, ...] already in [-1, 1]; latents, [N, C, H, W]
            or more axes with other channels than 1 or 3, may have any range.
        labels: int64 [N], the class of each sample, -1 for an unknown class; or None.
        names: the names of the classes, or ().
        flip: `training_batch` mirrors images left to right at random.
        augmentation: the random views of images in `training_batch`, instead of flip.
        origin: name of the bundled data set: digits or two-moons.
        defaults: conditions of every sample beside its label, in one row.
        skipped: images that were left out because they cannot be decoded.

    Raises:
        DataError: values or labels that cannot be trained on, such as nan, or pixels of 0 to 255 as
            floats.
    """

    values: Tensor
    labels: Tensor | None = None
    names: tuple[str, ...] = ()
    flip: bool = False
    augmentation: Augmentation | None = None
    origin: str = ""
    defaults: Cond | None = None
    skipped: Skipped = Skipped()  # noqa: RUF009  # frozen

    def __post_init__(self) -> None:
        _check_values(self.values)
        if self.labels is not None:
            _check_labels(self.labels, len(self.values), self.names)
        elif self.names:
            raise DataError(f"{len(self.names)} names of classes without labels: give both")
        if self.flip and not self.is_images:
            raise DataError(
                f"only images can be flipped, got samples of shape {self.shape}: write flip=False"
            )
        if self.augmentation is not None and (self.flip or not self.is_images):
            raise DataError(
                f"an augmentation is for images, and replaces flip, got samples of shape {self.shape} and "
                f"flip={self.flip}: write flip=False, and flip among its steps"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return tuple(self.values.shape[1:])

    @cached_property
    def is_images(self) -> bool:
        """Whether samples are [C, H, W] in the range of pixels; latents need not be."""
        return self.values.ndim == 4 and (self.values.dtype == torch.uint8 or _bounded(self.values))

    @property
    def num_classes(self) -> int:
        """The number of classes; 0 without labels."""
        if self.labels is None:
            return 0
        return len(self.names) or int(self.labels.max()) + 1

    @property
    def unlabelled(self) -> int:
        """The number of samples without a label."""
        return len(self) if self.labels is None else int((self.labels < 0).sum())

    @property
    def views(self) -> int | None:
        """The number of views of a sample, itself included; None if every draw is new."""
        if self.augmentation is not None:
            return self.augmentation.views or None
        return 2 if self.flip else 1

    @property
    def nbytes(self) -> int:
        """The number of bytes that `to` moves."""
        return self.values.nbytes

    def __len__(self) -> int:
        return len(self.values)

    def to(self, device: torch.device | str) -> "Dataset":
        """The data on a device; tensors that are there are not copied.

        Args:
            device: a torch device, or its name.
        """
        labels = None if self.labels is None else self.labels.to(device)
        defaults = None if self.defaults is None else self.defaults.to(device)
        return replace(self, values=self.values.to(device), labels=labels, defaults=defaults)

    def batch(self, rows: Tensor, flips: Tensor | None = None) -> Batch:
        """These rows as float32 in [-1, 1], with their labels; view 1 is the mirror image.

        Args:
            rows: int64 [B].
            flips: bool [B], mirror these; None mirrors none.

        Raises:
            DataError: flips of another shape, or of samples that are no images.
        """
        rows = rows.to(self.values.device)
        x0, views = self.values[rows], torch.zeros_like(rows)
        if flips is not None:
            if not self.is_images or flips.shape != rows.shape or flips.dtype != torch.bool:
                raise DataError(
                    f"flips are bool [{len(rows)}] and for images [C, H, W], got {flips.dtype} "
                    f"{list(flips.shape)} for samples of shape {list(self.shape)}: write flips=None"
                )
            views = flips.to(x0.device).long()
            x0 = torch.where(views[:, None, None, None] > 0, x0.flip(-1), x0)
        if x0.dtype == torch.uint8:
            x0 = scaled(x0)
        cond = None if self.labels is None else Cond(label=self.labels[rows])
        return Batch(x0, completed(cond, self.defaults, len(rows)), rows, views)

    def training_batch(self, rows: Tensor, draw: Draw) -> Batch:
        """These rows for training: augmented, or with `flip` a random half of them mirrored.

        Args:
            rows: int64 [B].
            draw: the randomness of the update.
        """
        if (augmentation := self.augmentation) is None:
            return self.batch(rows, draw.uniform() < 0.5 if self.flip else None)
        rows = rows.to(self.values.device)
        if (views := augmentation.choose(rows, draw)) is not None:
            return self.viewed(rows, views)
        batch = self.batch(rows)
        x0 = augmentation.fresh(batch.x0, draw, images_of=self._images_of, rows=len(self))
        return Batch(x0, self._mixed(batch.cond, torch.ones_like(rows)), batch.ids)

    def viewed(self, rows: Tensor, views: Tensor) -> Batch:
        """These rows in these views, 0 to `self.views` - 1; view 0 is the original.

        Args:
            rows: int64 [B].
            views: int64 [B].

        Raises:
            DataError: a view that does not exist.
        """
        if self.views is None or int(views.max()) >= self.views or int(views.min()) < 0:
            raise DataError(
                f"views {int(views.min())} to {int(views.max())} do not exist, there are "
                f"{'new ones every time' if self.views is None else self.views}: give the augmentation a "
                "number of views"
            )
        if (augmentation := self.augmentation) is None:
            return self.batch(rows, views > 0 if self.flip else None)
        batch = self.batch(rows)
        views = views.to(batch.x0.device)
        x0 = augmentation.viewed(
            batch.x0, rows.to(views.device), views, images_of=self._images_of, rows=len(self)
        )
        return replace(batch, x0=x0, cond=self._mixed(batch.cond, views), views=views)

    def labelled(self, count: int, *, seed: int = 0, keep_others: bool = True) -> "Dataset":
        """The data with labels for `count` samples of each class only, chosen by the seed.

        Args:
            count: labelled samples of each class.
            seed: chooses them.
            keep_others: keep the other samples, without a label (-1); or leave them out.

        Raises:
            DataError: the data has no labels, or too few of a class.
        """
        if self.labels is None:
            raise DataError("this data has no labels to choose from: give labelled data")
        rows = some_of_each(self.labels, count, seed=seed).to(self.labels.device)
        if not keep_others:
            return self.only(rows)
        labels = torch.full_like(self.labels, NONE)
        labels[rows] = self.labels[rows]
        names = self.names or tuple(map(str, range(self.num_classes)))
        return replace(self, labels=labels, names=names)

    def apart(self, share: float, *, seed: int = 0) -> "tuple[Dataset, Dataset]":
        """Two disjoint parts, chosen by the seed: the second has this share of the samples.

        Args:
            share: in (0, 1).
            seed: chooses the samples.

        Raises:
            DataError: a share that leaves one part empty.
        """
        count = round(len(self) * validate("share", share, Share))
        if not 0 < count < len(self):
            raise DataError(
                f"a share of {share:g} of {len(self):,} samples leaves one part empty: write a share in "
                "(0, 1), such as 0.15"
            )
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(key(seed)))
        return self.only(order[count:].sort().values), self.only(order[:count].sort().values)

    def only(self, rows: Tensor) -> "Dataset":
        """These samples in this order; rows may repeat.

        Args:
            rows: int64 [M].
        """
        labels = None if self.labels is None else self.labels[rows.to(self.labels.device)]
        names = () if labels is None else self.names or tuple(map(str, range(self.num_classes)))
        return replace(
            self, values=self.values[rows.to(self.values.device)], labels=labels, names=names
        )

    def _images_of(self, rows: Tensor) -> Tensor:
        return self.batch(rows).x0

    def _mixed(self, cond: Cond | None, views: Tensor) -> Cond | None:
        """The condition without the labels of images that others are mixed into."""
        if cond is None or cond.label is None or self.augmentation is None:
            return cond
        if not self.augmentation.mixes:
            return cond
        return replace(cond, label=torch.where(views.to(cond.label.device) > 0, NONE, cond.label))

    def fingerprint(self) -> str:
        """sha256 of values and labels (not of names or flip): the same on every device."""
        return sha256_of((self.values, self.labels))


def _check_values(values: Tensor) -> None:
    shape = list(values.shape)
    if values.ndim < 2 or values.numel() == 0:
        raise DataError(f"no samples: values have shape {shape}, expected [N, ...] with N >= 1")
    if values.dtype == torch.uint8:
        refuse_other_bytes(values)
        return
    if values.dtype != torch.float32:
        raise DataError(
            f"values must be uint8 images or float32 in [-1, 1], got {values.dtype}: convert them"
        )
    low, high = (float(end) for end in torch.aminmax(values.detach()))
    if low != low or high != high:  # aminmax passes nan on
        raise DataError("some values are nan: remove those samples")
    if low == -inf or high == inf:
        raise DataError(
            f"float values must be finite, got {low:g} to {high:g}: remove those samples"
        )
    if not (_bounded(values) or _may_be_latents(values)):
        raise DataError(
            f"float values must lie in [-1, 1], got {low:g} to {high:g}: scale them, for example "
            "x / 127.5 - 1 for pixels of 0 to 255; latents, of other channels than 1 or 3, may have any range"
        )
    refuse_halves(values, low, high)


def _bounded(values: Tensor) -> bool:
    low, high = torch.aminmax(values.detach())
    return bool(low >= -1) and bool(high <= 1)


def _may_be_latents(values: Tensor) -> bool:
    """Whether values beyond [-1, 1] are latents, and not unscaled or transposed images."""
    if values.ndim < 4 or values.shape[1] in (1, 3):
        return False
    last = values.shape[-1] in (1, 3) and values.shape[-1] != values.shape[-2]
    return not last and not bool((values == values.round()).all())  # pixels are whole numbers


def _check_labels(labels: Tensor, samples: int, names: tuple[str, ...]) -> None:
    if labels.dtype != torch.int64 or labels.ndim != 1:
        raise DataError(
            f"labels are int64 [{samples}], got {labels.dtype} {list(labels.shape)}: give every "
            "sample one whole number"
        )
    if len(labels) != samples:
        raise DataError(f"{samples} samples but {len(labels)} labels: give every sample one")
    low, high = (int(end) for end in torch.aminmax(labels))
    if low < -1:
        raise DataError(f"labels count from 0, got {low}: write -1 for a sample without a label")
    if names and high >= len(names):
        raise DataError(
            f"label {high} has no name among {len(names)} classes: labels are 0 to {len(names) - 1}"
        )
