"""Subsets of labels: some samples of each class, and a teacher's confident predictions."""

import torch
from torch import Tensor

from halfstep.config.validate import validate
from halfstep.errors import ConfigError, DataError
from halfstep.rng import key

NONE = -1
"""The label of a sample of unknown class."""


def some_of_each(labels: Tensor, count: int, *, seed: int = 0) -> Tensor:
    """Sorted rows of `count` random samples of each class, int64; a smaller count gives a subset of them.

    labels  int64 [N]; -1 is no label
    seed    chooses the samples

    `DataError` where a class has fewer.
    """
    if validate("labels_per_class", count, int) < 1:
        raise ConfigError(f"{count} labels a class teach nothing: write at least 1")
    chosen = list[Tensor]()
    for label in labels[labels >= 0].unique().tolist():
        rows = (labels == label).nonzero()[:, 0].cpu()
        if len(rows) < count:
            raise DataError(
                f"class {label} has {len(rows):,} labelled samples, not {count:,}: write at most "
                f"{len(rows):,} a class"
            )
        generator = torch.Generator().manual_seed(key(seed, label))
        chosen.append(rows[torch.randperm(len(rows), generator=generator)[:count]])
    if not chosen:
        raise DataError("this data has no labels to choose from: give labelled data")
    return torch.cat(chosen).sort().values


def confident_rows(
    probabilities: Tensor,
    *,
    threshold: float = 0.0,
    per_class: int | None = None,
    repeat: bool = False,
) -> Tensor:
    """Rows with a confident prediction, class by class with the most confident first, int64.

    probabilities  the teacher's, float [N, classes]
    threshold      the least probability of the predicted class, in [0, 1]
    per_class      the largest number of rows per class; None: all
    repeat         repeat the rows of smaller classes up to `per_class`, as Noisy Student balances them (Xie
                   et al. 2020, arXiv 1911.04252, section 2)

    Classes without a confident row are left out.
    """
    if (
        probabilities.ndim != 2
        or not 0 <= threshold <= 1
        or (per_class is not None and per_class < 1)
    ):
        raise ConfigError(
            f"probabilities are [N, classes] and a threshold lies in [0, 1], got "
            f"{list(probabilities.shape)}, {threshold:g} and {per_class} a class: write for example "
            "threshold=0.9, per_class=100"
        )
    sums = probabilities.detach().double().sum(1)
    if probabilities.min() < 0 or (sums - 1).abs().max() > 1e-3:
        raise ConfigError(
            f"probabilities are 0 or more and sum to 1 in every row, got sums of {float(sums.min()):g} to "
            f"{float(sums.max()):g}: write logits.softmax(1)"
        )
    if repeat and per_class is None:
        raise ConfigError("repeat needs the number of rows per class: give per_class, too")
    confidence, label = probabilities.detach().cpu().double().max(1)
    chosen = list[Tensor]()
    for k in range(probabilities.shape[1]):
        rows = ((label == k) & (confidence >= threshold)).nonzero()[:, 0]
        rows = rows[confidence[rows].argsort(descending=True, stable=True)]
        if per_class is not None:
            times = -(-per_class // max(len(rows), 1)) if repeat else 1
            rows = rows.repeat(times)[:per_class]
        chosen.append(rows)
    return torch.cat(chosen)
