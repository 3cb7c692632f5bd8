"""`halfstep sample`: draw images from a teacher, a student or a published model."""

from collections.abc import Sequence

from halfstep.cli.console.next_command import say_after_samples
from halfstep.cli.console.progress import counting, reading, say, terminal
from halfstep.cli.parse import parse
from halfstep.workflows.sample import prepare_sample, SampleConfig


def main(argv: Sequence[str]) -> int:
    """Draw samples and write them; print the files."""
    console = terminal()
    config = parse(SampleConfig, argv, prog="halfstep sample")
    with reading(console, config.start.images or "") as progress:
        job = prepare_sample(config, progress=progress)
    title = f"{job.start.n:,} samples in {job.steps} step{'s' if job.steps > 1 else ''}"
    with counting(console, title) as progress:
        sampled = job.run(progress)
    if sampled.images:
        first, *_, last = sampled.images * 2
        say(console, "images", first if first == last else f"{first} to {last.name}")
    if sampled.grid is not None:
        say(console, "all", sampled.grid)
    if sampled.npz is not None:
        say(console, "numbers", sampled.npz)
    say_after_samples(console, config.pipeline, net=config.net)
    return 0
