"""`halfstep latents`: encode images once, for a model that is trained on latents."""

import shlex
from collections.abc import Sequence

from rich.console import Console

from halfstep.cli.console.progress import counting, reading, say, terminal
from halfstep.cli.parse import parse
from halfstep.workflows.latents import EncodedData, LatentsConfig, prepare_latents


def main(argv: Sequence[str]) -> int:
    """Encode the images that are not encoded yet; print the content of the folder."""
    console = terminal()
    config = parse(LatentsConfig, argv, prog="halfstep latents")
    with reading(console, config.data) as progress:
        job = prepare_latents(config, progress=progress)
    with counting(console, f"encoding {len(job.images):,} images") as progress:
        result = job.run(progress)
    if not result.encoded:
        say(console, "done", "these latents were finished before: nothing was left to do")
    _print(console, config, result)
    return 0


def _print(console: Console, config: LatentsConfig, result: EncodedData) -> None:
    """Print the content of the folder, and the command that trains on it."""
    latents = result.latents
    classes = f", {latents.num_classes} classes" if latents.num_classes else ""
    views = " and of their mirror images" if latents.flip else ""
    shape, size = list(latents.shape), latents.nbytes / 2**20
    say(
        console,
        "latents",
        f"{config.out}, {len(latents):,} of shape {shape}{views}{classes}, {size:,.1f} MiB",
    )
    say(
        console,
        "spread",
        f"{result.spread:.2f} with scale {latents.scale:g}; a network learns best near 1",
    )
    labels = " --labels --drop-labels 0.1" if latents.num_classes else ""
    texts = " --texts --drop-labels 0.1" if latents.contexts else labels
    out = shlex.quote(str(config.out))
    say(console, "next", f"halfstep train denoiser --data {out}{texts} --out TEACHER")
