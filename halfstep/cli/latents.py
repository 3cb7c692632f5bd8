"""`halfstep latents`: images encoded once, for a model that is trained on latents."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
from rich.console import Console

from halfstep.cli.options import Flat, parse
from halfstep.cli.progress import counting, say, terminal
from halfstep.data.encoding import Captions, Layout, write_latents
from halfstep.data.latents import is_latents, open_latents
from halfstep.data.streamed import Folder, Images, stream
from halfstep.errors import ConfigError
from halfstep.files import check_writable
from halfstep.kinds import above, at_least, at_most, Count
from halfstep.nets.autoencoder import load_codec
from halfstep.training.parallel import pick_device


@dataclass(frozen=True, kw_only=True)
class Encode:
    """Encode images, and their mirror images, into the latent space of a codec."""

    data: str
    """A folder of images, cifar10:FOLDER, fashion-mnist:FOLDER, digits, or a .npy or .npz file."""
    codec: Path
    """What `halfstep train codec` made, a diffusers folder, or an official autoencoder .pth file."""
    out: Path
    """Folder for the latents; the same command again goes on where it stopped."""
    size: Count | None = None
    """Side of the images in pixels."""
    channels: Count | None = None
    """1 for gray, 3 for colour."""
    layout: Annotated[Layout, Flat] = field(default_factory=Layout)
    scale: Annotated[float, above(0)] | None = None
    """Factor on latents, if not the codec's own; the official text models have 0.2301."""
    text: Path | None = None
    """Encode captions as well, with this CLIP or T5: metadata.jsonl, or a .txt beside each image."""
    tokens: Annotated[int, at_least(2), at_most(2**16)] = 77
    """States of a caption."""
    batch: Count = 64
    """Images at a time."""
    verify: bool = False
    """Compare the checksums of all files that are there."""
    device: str = "auto"
    """auto (CUDA, then MPS, then CPU), or one by name."""


def latents(argv: Sequence[str]) -> int:
    """Encode what is not encoded yet; say what there is."""
    console = terminal()
    options = parse(Encode, argv, prog="halfstep latents")
    _check_places(options)
    device = pick_device(options.device)
    images = stream(options.data, size=options.size, channels=options.channels)
    codec = load_codec(options.codec, scale=options.scale).to(device)
    captions = _captions(options, images, device, console)
    with counting(console, f"encoding {len(images):,} images") as progress:
        worked = write_latents(
            images, codec, options.out, layout=options.layout, captions=captions, batch=options.batch,
            device=device, progress=progress,
        )  # fmt: skip
    if not worked:
        say(console, "done", "these latents were finished before: nothing was left to do")
    _report(options, console)
    return 0


def _check_places(options: Encode) -> None:
    """Refuse before anything is read: latents as images, and latents among the images."""
    place, out = Path(options.data).expanduser(), options.out.expanduser()
    check_writable(options.out, "choose another --out")
    if options.data and is_latents(place):
        raise ConfigError(
            f"'{place}' holds latents already: name the images they are to be made of"
        )
    if options.data and place.is_dir() and out.resolve().is_relative_to(place.resolve()):
        raise ConfigError(f"'{out}' lies in the folder of the images: choose another --out")


def _captions(
    options: Encode, images: Images, device: torch.device, console: Console
) -> Captions | None:
    """The captions that lie with the images, and their encoder."""
    if options.text is None:
        return None
    if not isinstance(images, Folder):
        raise ConfigError(
            f"captions lie with the images of a folder, and '{options.data}' is none: leave --text out"
        )
    from halfstep.data.captions import read_captions
    from halfstep.nets.text import load_texts

    texts = load_texts(options.text, tokens=options.tokens, device=device)
    of = read_captions(images.folder, images.files)
    if cut := len(texts.cut([text for some in of for text in some])):
        say(
            console,
            "note",
            f"{cut:,} captions have more than {options.tokens} tokens and lose their end",
        )
    return Captions(texts, of, texts.digest())


def _report(options: Encode, console: Console) -> None:
    """What the folder holds, and what can be done with it."""
    found = open_latents(options.out, verify=options.verify)
    classes = f", {found.classes} classes" if found.classes else ""
    views = " and of their mirror images" if found.flip else ""
    shape, size = list(found.shape), found.nbytes / 2**20
    say(
        console,
        "latents",
        f"{options.out}, {len(found):,} of shape {shape}{views}{classes}, {size:,.1f} MiB",
    )
    rows = torch.arange(0, len(found), max(1, len(found) // 1000))
    spread = float(found.batch(rows).x0.std())
    say(console, "spread", f"{spread:.2f} with scale {found.scale:g}; a network learns best near 1")
    labels = " --labels --drop-labels 0.1" if found.classes else ""
    texts = " --texts --drop-labels 0.1" if found.contexts else labels
    out = shlex.quote(str(options.out))
    say(console, "next", f"halfstep train denoiser --data {out}{texts} --out TEACHER")
