"""`halfstep encode`: images to the noise that a model makes them of."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from halfstep.cli.options import parse
from halfstep.cli.progress import counting, reading, say, terminal
from halfstep.workflows.encode import EncodeConfig, EncodeJob, prepare_encode


@dataclass(frozen=True, kw_only=True)
class Encode:
    """Turn images into the noise that a model makes them of; `halfstep sample --noise` turns it back."""

    pipeline: Annotated[Path | None, tyro.conf.Positional] = None
    """A teacher's folder, an encoder's (halfstep distill encoder), or the run that made it."""
    config: EncodeConfig
    out: Path
    """NAME.safetensors: the noise.  NAME.json says how it was made, NAME.png shows it."""


def main(argv: Sequence[str]) -> int:
    """Encode and write; print where, and the command that turns the noise back."""
    console = terminal()
    options = parse(Encode, argv, prog="halfstep encode")
    with reading(console, options.config.images) as progress:
        job = prepare_encode(options.pipeline, options.out, options.config, progress=progress)
    n, steps = len(job.images), job.steps
    what = f"{n:,} image{'s' * (n > 1)} to noise in {steps} step{'s' * (steps > 1)}"
    with counting(console, what) as progress:
        encoded = job.run(progress)
    say(console, "noise", encoded.path)
    if encoded.picture is not None:
        say(console, "all", f"{encoded.picture}: images above, their noise below")
    say(console, "look", _decode_command(options.pipeline, job))
    return 0


def _decode_command(folder: Path | None, job: EncodeJob) -> str:
    place = "TEACHER" if job.pipeline.times or folder is None else str(folder)
    scale = "" if job.config.guidance == 1 else f" --guidance {job.config.guidance:g}"
    noise = shlex.quote(str(job.out))
    return f"halfstep sample {place} --noise {noise}{scale} --steps {job.steps} --out back.png"
