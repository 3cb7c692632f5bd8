"""`halfstep encode`: encode images as noise."""

import shlex
from collections.abc import Sequence

from halfstep.cli.console.progress import counting, reading, say, terminal
from halfstep.cli.parse import parse
from halfstep.workflows.encode import EncodeConfig, EncodeJob, prepare_encode


def main(argv: Sequence[str]) -> int:
    """Encode and write; print the files, and the command that makes the images again."""
    console = terminal()
    config = parse(EncodeConfig, argv, prog="halfstep encode")
    with reading(console, config.images) as progress:
        job = prepare_encode(config, progress=progress)
    n, steps = len(job.images), job.steps
    title = f"{n:,} image{'s' * (n > 1)} to noise in {steps} step{'s' * (steps > 1)}"
    with counting(console, title) as progress:
        encoded = job.run(progress)
    say(console, "noise", encoded.path)
    if encoded.picture is not None:
        say(console, "all", f"{encoded.picture}: images above, their noise below")
    say(console, "next", _decode_command(job))
    return 0


def _decode_command(job: EncodeJob) -> str:
    folder, guidance_scale = job.config.pipeline, job.config.guidance_scale
    place = "TEACHER" if job.pipeline.times or folder is None else str(folder)
    scale = "" if guidance_scale == 1 else f" --guidance-scale {guidance_scale:g}"
    noise = shlex.quote(str(job.config.out))
    return f"halfstep sample {place} --noise {noise}{scale} --steps {job.steps} --out back.png"
