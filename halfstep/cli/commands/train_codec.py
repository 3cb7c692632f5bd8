"""`halfstep train codec`."""

import shlex
from collections.abc import Sequence

from rich.console import Console

from halfstep.cli.console.progress import reading, say, terminal
from halfstep.cli.console.run_lines import as_typed, describe_data, run_context, updates_on
from halfstep.cli.console.run_plan import plan_only
from halfstep.cli.parse import parse
from halfstep.workflows.train_codec import prepare_codec, TrainCodecConfig, TrainedCodec


def main(argv: Sequence[str]) -> int:
    """Train a codec; print its folder, and the error of its reconstructions."""
    console = terminal()
    config = parse(TrainCodecConfig, argv, prog="halfstep train codec")
    folder = config.folder
    with reading(console, config.dataset.data) as progress:
        prepared = prepare_codec(config, progress=progress)
    if folder.dry_run:
        return plan_only(console, config, prepared.train)
    parameters = sum(p.numel() for p in prepared.codec.parameters())
    latents = f"latents of shape {prepared.latent_shape}"
    say(console, "network", f"{parameters:,} parameters, {latents}")
    say(console, "data", describe_data(config.dataset, prepared.data))
    say(console, "updates", updates_on(config.method.updates, config.training, folder.device))
    with run_context(folder, config, console) as job:
        prepared.train(job)
    _print(console, config, prepared.reconstruct())
    return 0


def _print(console: Console, config: TrainCodecConfig, result: TrainedCodec) -> None:
    """Print the error of the reconstructions, the files, and the command that encodes the data."""
    held_out = "test images, which it was not trained on"
    images = held_out if result.held_out else "of the images that it was trained on"
    say(console, "psnr", f"{result.psnr:.2f} dB on {result.images:,} {images}")
    scale = f"{result.codec.scale:.5f}, which brings the latents to unit variance"
    say(console, "scale", scale)
    say(console, "look", f"{result.picture}: originals above, reconstructions below")
    say(console, "codec", result.folder)
    out = shlex.quote(str(config.folder.out))
    dataset = as_typed(config.dataset)
    say(console, "next", f"halfstep latents --codec {out} {dataset} --out LATENTS")
