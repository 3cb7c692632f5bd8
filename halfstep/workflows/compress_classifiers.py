"""Make a classifier smaller after training, and measure its accuracy."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from torch import nn

from halfstep import files, storage
from halfstep.data import Dataset, held_out_split, load
from halfstep.errors import ConfigError
from halfstep.evaluation.compressed import size_of, zeros
from halfstep.evaluation.metrics.classification import score_classifier, Scores
from halfstep.models.classifiers.checkpoint import load_classifier, save_classifier
from halfstep.models.classifiers.registry import class_names, refuse_other_classes
from halfstep.progress import Progress, SILENT
from halfstep.schema import plain

ROUNDS, BATCH = 50, 64
ACCURACY = "accuracy.json"
Variants = Callable[[nn.Module], Iterator[tuple[str, str, nn.Module]]]
"""Maps a network to (name of a folder, in words, a smaller copy)."""


@dataclass(frozen=True, kw_only=True)
class CompressedClassifier:
    """A classifier, or a smaller variant of it, with its accuracy, size and speed.

    kind               "as trained", "int8" or "30 % of weights pruned"
    scores             accuracy on the labelled images, and agreement with the classifier as trained
    bytes              size of its tensors in the file
    zeros              share of its parameters that is exactly 0
    seconds_per_image  in a batch of 64
    """

    kind: str
    scores: Scores
    bytes: int
    zeros: float
    seconds_per_image: float


def compress_classifier(
    folder: Path,
    variants: Variants,
    *,
    data: str,
    out: Path,
    net: str | None = None,
    progress: Progress = SILENT,
) -> tuple[CompressedClassifier, ...]:
    """Write OUT/NAME for each variant, and OUT/accuracy.json with the scores of all; the original is first.

    folder    the classifier's own folder
    variants  maps the classifier to its variants
    data      labelled images; all are used, of Fashion-MNIST and CIFAR-10 the test images
    net       package.module:function that builds a network of your own
    """
    original = load_classifier(folder, net=net)
    images = load(data, split=held_out_split(data), progress=progress)
    if not isinstance(images, Dataset) or images.labels is None:
        raise ConfigError(
            f"accuracy needs labelled images, and '{data}' has none: give other --data"
        )
    refuse_other_classes(class_names(original), images.names, "the classifier", "the data")
    files.make_folder(out)
    nets = {"as trained": original}
    for name, kind, smaller in variants(original):
        save_classifier(smaller, files.subfolder(out, name))
        nets[kind] = load_classifier(out / name, net=net)
    progress.expect(len(nets))
    scores = list[Scores]()
    for classifier in nets.values():
        scores.append(score_classifier(classifier, images, teacher=original))
        progress.advance()
    seconds = _seconds_per_image(list(nets.values()), images)
    rows = tuple(
        CompressedClassifier(
            kind=kind, scores=score, bytes=size_of(classifier), zeros=zeros(classifier),
            seconds_per_image=taken,
        )
        for (kind, classifier), score, taken in zip(nets.items(), scores, seconds, strict=True)
    )  # fmt: skip
    _save(out, data, len(images), rows)
    return rows


def _save(out: Path, data: str, images: int, rows: Sequence[CompressedClassifier]) -> None:
    written = [
        {
            "kind": row.kind,
            **plain(row.scores),
            "bytes": row.bytes,
            "zeros": row.zeros,
            "seconds_per_image": row.seconds_per_image,
        }
        for row in rows
    ]
    storage.write_json(out / ACCURACY, {"data": data, "images": images, "rows": written})


@torch.no_grad()
def _seconds_per_image(nets: Sequence[nn.Module], images: Dataset) -> list[float]:
    """Seconds an image in a batch of 64: the median over rounds of all in turn, after one to warm up."""
    x = images.batch(torch.arange(BATCH) % len(images)).x0
    taken: list[list[float]] = [[] for _ in nets]
    for _ in range(1 + ROUNDS):
        for net, times in zip(nets, taken, strict=True):
            began = time.perf_counter()
            net(x)
            times.append((time.perf_counter() - began) / BATCH)
    return [median(times[1:]) for times in taken]
