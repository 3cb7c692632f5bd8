"""Classifiers made smaller after training, judged by their accuracy."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from torch import nn

from halfstep import files, storage
from halfstep.cli.columns import Columns, print_wide
from halfstep.cli.progress import counting, loading, say
from halfstep.data import Dataset
from halfstep.errors import ConfigError
from halfstep.evaluation.classification import score_classifier, Scores
from halfstep.evaluation.compressed import size_of, zeros
from halfstep.evaluation.intervals import Interval
from halfstep.nets.classifiers import class_names, refuse_other_classes
from halfstep.nets.classifiers_on_disk import load_classifier, save_classifier
from halfstep.report.numbers import big, percent
from halfstep.workflows.options import Source

ROUNDS, BATCH = 50, 64
Making = Callable[[nn.Module], Iterator[tuple[str, str, nn.Module]]]
"""Maps a network to (name of a folder, in words, a smaller copy)."""


def judged_classifiers(
    console: Console, place: Path, made: Making, *, data: str, out: Path, net: str | None = None
) -> int:
    """Write OUT/NAME for each variant and OUT/accuracy.json; print the table.

    place  the classifier's own folder
    made   maps it to its variants: name of a folder, in words, network
    data   labelled images, all of which count
    net    the function that builds it, if that is one of the user's own
    """
    source, own = Source(data=data), load_classifier(place, net=net)
    images = loading(console, source)
    if not isinstance(images, Dataset) or images.labels is None:
        raise ConfigError(
            f"accuracy needs labelled images, and '{data}' has none: give other --data"
        )
    refuse_other_classes(class_names(own), images.names, "the classifier", "the data")
    files.make_folder(out)
    nets = {"as trained": own}
    for name, words, smaller in made(own):
        save_classifier(smaller, files.subfolder(out, name))
        nets[words] = load_classifier(out / name, net=net)
    scores = list[Scores]()
    with counting(console, f"{len(images):,} images each") as progress:
        progress.expect(len(nets))
        for one in nets.values():
            scores.append(score_classifier(one, images, teacher=own))
            progress.advance()
    rows = [
        {
            "kind": words,
            **score.to_json(),
            "bytes": size_of(one),
            "zeroed": zeros(one),
            "seconds_per_image": taken,
        }
        for (words, one), score, taken in zip(
            nets.items(), scores, _seconds(list(nets.values()), images), strict=True
        )
    ]
    storage.write_json(out / "accuracy.json", {"data": data, "images": len(images), "rows": rows})
    _print(console, rows)
    say(console, "numbers", out / "accuracy.json")
    return 0


@torch.no_grad()
def _seconds(nets: list[nn.Module], images: Dataset) -> list[float]:
    """Of an image in a batch of 64: all in turn, the median of the rounds, after one to warm up."""
    x = images.batch(torch.arange(BATCH) % len(images)).x0
    taken: list[list[float]] = [[] for _ in nets]
    for _ in range(1 + ROUNDS):
        for net, times in zip(nets, taken, strict=True):
            began = time.perf_counter()
            net(x)
            times.append((time.perf_counter() - began) / BATCH)
    return [median(times[1:]) for times in taken]


def _print(console: Console, rows: list[dict[str, Any]]) -> None:
    table = Columns("", "accuracy", "agrees", "bytes", "zeros", "ms, batch 64")
    for row in rows:
        table.add_row(
            row["kind"],
            str(Interval(**row["accuracy"])),
            f"{row['agreement']['value']:.2%}",
            big(row["bytes"], "B"),
            percent(row["zeroed"]).lstrip("+"),
            f"{1000 * row['seconds_per_image']:.3g}",
        )
    print_wide(console, table)
