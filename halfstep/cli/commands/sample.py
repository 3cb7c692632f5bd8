"""`halfstep sample`: images from a teacher, a student, or a published model's weights."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from halfstep.cli.options import parse
from halfstep.cli.progress import counting, reading, say, terminal
from halfstep.workflows.sample import prepare_sample, SampleConfig


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Draw images: one PNG a seed, and a grid of them; or the grid alone, where --out is a PNG."""

    pipeline: Annotated[Path | None, tyro.conf.Positional] = None
    """A teacher's or student's folder, or the run that made it."""
    out: Path
    """Folder for the images, or a .png for a grid of them."""
    config: SampleConfig = field(default_factory=SampleConfig)


def main(argv: Sequence[str]) -> int:
    """Sample and write; print where."""
    console = terminal()
    options = parse(Sample, argv, prog="halfstep sample")
    with reading(console, options.config.start.images or "") as progress:
        job = prepare_sample(options.pipeline, options.out, options.config, progress=progress)
    what = f"{job.start.n:,} samples in {job.steps} step{'s' if job.steps > 1 else ''}"
    with counting(console, what) as progress:
        sampled = job.run(progress)
    if sampled.images:
        first, *_, last = sampled.images * 2
        say(console, "images", first if first == last else f"{first} to {last.name}")
    if sampled.grid is not None:
        say(console, "all", sampled.grid)
    if sampled.npz is not None:
        say(console, "numbers", sampled.npz)
    return 0
