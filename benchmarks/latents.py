"""How fast latents are read, against what a training step of a small latent U-ViT needs.

    python -m benchmarks.latents [--device cpu|cuda|auto] [--half] [--json]

Latents of 4 x 32 x 32, as of ImageNet-256, lie in several memory-mapped shards; rows come in random
order, so that a batch touches all of them.  'read' is `Latents.training_batch` (gather of image or mirror,
fresh draw), 'step' is the denoising loss, its backward and the optimiser on a batch that is there
already.  Both run in turn in one process; their ratio is taken within each turn.  Reading is held to at
least 20 times what a step needs.  The files have just been written, so they come from memory and not
from the disk.
"""

import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.timing import options_parser, prepare, Results, seconds
from halfstep.batch import Batch
from halfstep.data.epoch_order import rows
from halfstep.data.latents.dataset import Latents
from halfstep.data.latents.shards import mapped, Shards, written
from halfstep.diffusion.denoiser import Denoiser
from halfstep.diffusion.loss_weighting import WEIGHTINGS
from halfstep.diffusion.prediction import Eps
from halfstep.diffusion.schedules import VPLinear
from halfstep.methods.diffusion.denoising import Denoise
from halfstep.models import build
from halfstep.rng import Draw
from halfstep.training import TrainingConfig
from halfstep.training.checkpoint import State
from halfstep.training.ema import Average
from halfstep.training.optimiser import Optimiser
from halfstep.training.update import step

SHAPE = (4, 32, 32)
NET = dict(img_size=32, patch_size=2, in_chans=4, embed_dim=256, depth=8, num_heads=4)
"""A small U-ViT on the tokens of the large ones; larger ones need rows more slowly."""
LEAST_RATIO = 20


def write_random(folder: Path, count: int, shard: int, *, half: bool) -> Latents:
    """Latents of random moments: their values do not change the speed."""
    dtype, parts = torch.float16 if half else torch.float32, list[Tensor]()
    for k, low in enumerate(range(0, count, shard)):
        shape = min(shard, count - low), 2, 2 * SHAPE[0], *SHAPE[1:]
        path = folder / f"shard-{k:05d}.npy"
        written(path, shape, dtype, [torch.randn(shape).to(dtype)])
        parts.append(mapped(path, shape, dtype).flatten(0, 1))
    return Latents(Shards(tuple(parts)), 2, 0.18215)


class Bench:
    """Latents, a network and its optimiser, and the two things that are timed."""

    def __init__(self, latents: Latents, device: torch.device, batch: int):
        self.latents, self.device, self.batch, self.reads = latents, device, batch, 0
        self.generator = torch.Generator(device).manual_seed(0)
        torch.manual_seed(0)
        schedule, settings = VPLinear(), TrainingConfig(ema=0.9999)
        self.student = Denoiser(build("uvit", NET), schedule, Eps()).to(device)
        self.objective = Denoise(schedule, WEIGHTINGS["snr"])
        optimiser = Optimiser(self.student, settings, fused=device.type in ("cpu", "cuda"))
        self.settings = settings
        self.state = State(self.student, optimiser, Average(self.student, settings.ema), None)
        self.data = Batch(torch.randn(batch, *SHAPE, device=device))

    def draw(self) -> Draw:
        return Draw.all(self.generator, self.batch)

    def read(self) -> Batch:
        chosen = rows(0, 0, self.reads, self.batch, len(self.latents))
        self.reads += 1
        return self.latents.training_batch(chosen, self.draw())

    def step(self) -> None:
        self.objective(self.student, self.data, self.draw()).mean().backward()
        step(self.student, self.state, self.settings, rate=1e-4)
        self.state.update += 1


def measure(bench: Bench, rounds: int) -> dict[str, float]:
    """Rows read in a second, rows that a step needs in a second, and the median of their ratio."""
    device = bench.device
    for part in bench.latents.moments.parts:
        part.sum()  # reads each page once
    seconds(bench.read, device, 2)
    seconds(bench.step, device)
    turns = [(seconds(bench.read, device, 8), seconds(bench.step, device)) for _ in range(rounds)]
    return {
        "read": bench.batch / statistics.median(read for read, _ in turns),
        "needed": bench.batch / statistics.median(needed for _, needed in turns),
        "ratio": statistics.median(needed / read for read, needed in turns),
        "held_to": LEAST_RATIO,
    }


def table(results: Results) -> str:
    """The results in three lines."""
    setting = "{device}, {threads} threads, torch {torch}, {dtype}, batches of {batch}"
    return (
        f"{setting.format(**results)}, {results['shards']} shards of {results['shard']:,} images\n"
        f"read {results['read']:,.0f} rows/s, a step needs {results['needed']:,.1f} rows/s\n"
        f"ratio {results['ratio']:,.0f}, held to {results['held_to']}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = options_parser("latents", __doc__, rounds=7)
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--shard", type=int, default=256, help="images a shard")
    parser.add_argument("--batch", type=int, default=64, help="images a step")
    parser.add_argument("--half", action="store_true", help="float16 shards")
    options = parser.parse_args(arguments)

    device, setting = prepare(options)
    with tempfile.TemporaryDirectory() as folder:
        latents = write_random(Path(folder), options.images, options.shard, half=options.half)
        results = {
            **setting,
            "dtype": "float16" if options.half else "float32",
            "batch": options.batch,
            "shard": options.shard,
            "shards": len(latents.moments.parts),
            **measure(Bench(latents, device, options.batch), options.rounds),
        }
        del latents
    print(json.dumps(results, indent=1) if options.json else table(results))


if __name__ == "__main__":
    main()
