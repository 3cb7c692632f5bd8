"""Start the presets of the published U-ViTs: their memory plan, then ten updates on data made for them.

    python -m benchmarks.published [NAME ...] [--updates 10] [--samples 2]

Each preset is run in a process of its own, as `halfstep train denoiser --preset published/NAME` would run it:
first with --dry-run, at the preset's own batch size, then for a few updates of a few samples. On a CPU these
are in bf16 instead of fp16. The data are noise: images for the pixel models, latents that a small codec makes
of them for the others, with states of captions for the text models.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from halfstep.batch import Cond
from halfstep.cli.console.progress import terminal
from halfstep.cli.console.run_plan import in_bytes, plan_only
from halfstep.config.fields import build
from halfstep.config.preset_files import preset
from halfstep.config.toml import from_file
from halfstep.data.latents.captions import Captions
from halfstep.data.latents.encoding import write_latents
from halfstep.data.latents.image_stream import stream
from halfstep.hub.uvit import PUBLISHED
from halfstep.models.autoencoder.kl import KLCodec
from halfstep.training.run_folder import RunFolder
from halfstep.workflows.train_denoiser import prepare_denoiser, TrainDenoiserConfig

CODEC = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": [4],
    "norm_num_groups": 2,
    "layers_per_block": 1,
    "down_block_types": ["DownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D"],
    "mid_block_add_attention": False,
}
"""A codec of one pixel to a side, so that large latents are made of small images."""
WITHOUT_LABELS = 4
"""Images of the data; those with labels are one a class."""
CAPTION = (77, 768)
"""States of a caption, as CLIP ViT-L/14 has them."""


class MadeTexts:
    """States of captions that stand in for CLIP's: noise that depends on the caption's length."""

    def encode(self, texts: list[str]) -> Tensor:
        """States of the texts, [N, 77, 768]."""
        noise = [torch.Generator().manual_seed(len(text)) for text in texts]
        return torch.stack([torch.randn(CAPTION, generator=generator) for generator in noise])

    def conditions(self, texts: list[str]) -> Cond:
        """The conditions of the texts."""
        return Cond(encoder_hidden_states=self.encode(texts))

    def null(self) -> Cond:
        """The condition of the empty text."""
        return self.conditions([""])

    def on(self, device: torch.device | str) -> AbstractContextManager[None]:
        """Stay on the CPU."""
        return nullcontext()

    def release(self) -> None:
        """Nothing is held."""


def make_data(name: str, options: TrainDenoiserConfig, folder: Path) -> Path:
    """Write data of the shape that this preset takes into the folder; returns their path."""
    published, images = PUBLISHED[name], folder / "images.npz"
    n, latent = published.num_classes or WITHOUT_LABELS, not options.dataset.size
    side = published.shape[-1]
    pixels = np.random.default_rng(0).integers(0, 256, (n, side, side, 3), dtype=np.uint8)
    labels = {"labels": np.arange(n)} if published.num_classes else {}
    np.savez(images, images=pixels, **labels)
    if not latent:
        return images
    captions = None
    if options.network.texts:
        captions = Captions(MadeTexts(), [("a",), ("of noise",), ("b",), ("c",)], "made")
    torch.manual_seed(0)
    codec = KLCodec.fresh(CODEC, scale=published.scale)
    write_latents(stream(str(images)), codec, folder / "latents", captions=captions)
    return folder / "latents"


def options_of(name: str, **changes: Any) -> TrainDenoiserConfig:
    """The preset's options, with changes."""
    values = from_file(TrainDenoiserConfig, preset(f"published/{name}")) | changes
    return build(TrainDenoiserConfig, values)


def start(name: str, updates: int, samples: int) -> None:
    """Print the memory plan of one preset, train it for a few updates, print losses and peak memory."""
    console = terminal()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        wanted = options_of(name, data="made", out=folder / "run")
        where = {"data": str(make_data(name, wanted, folder)), "out": folder / "run"}
        console.print(f"\npublished/{name}", highlight=False)
        plan_only(console, wanted, prepare_denoiser(options_of(name, **where)).run)
        few = {"updates": updates, "batch_size": samples, "log_every": 1, "save_every": updates}
        if not torch.cuda.is_available():
            few["precision"] = "bf16"  # which a CPU multiplies in, unlike fp16
        prepare_denoiser(options_of(name, **where, **few)).run()
        losses = [line["loss"] for line in RunFolder(folder / "run").losses]
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    console.print(
        f"started   {len(losses)} updates of {samples} samples: loss {losses[0]:.3f} to "
        f"{losses[-1]:.3f}; the process took {in_bytes(peak)}",
        highlight=False,
    )


def main() -> int:
    """Start the presets that are named, or all; returns how many failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.published", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("names", nargs="*", metavar="NAME", help="all by default")
    parser.add_argument("--updates", type=int, default=10)
    parser.add_argument("--samples", type=int, default=2, help="samples of an update")
    options = parser.parse_args()
    if unknown := set(options.names) - set(PUBLISHED):
        parser.error(f"no preset {', '.join(sorted(unknown))}: choose from {', '.join(PUBLISHED)}")
    names = options.names or list(PUBLISHED)
    if len(names) == 1:
        start(names[0], options.updates, options.samples)
        return 0
    rest = ["--updates", str(options.updates), "--samples", str(options.samples)]
    command = [sys.executable, "-m", "benchmarks.published"]
    return sum(subprocess.run([*command, name, *rest]).returncode != 0 for name in names)


if __name__ == "__main__":
    sys.exit(main())
