"""How fast the U-ViT is beside a plain one, in a forward and in a training step.

    python -m benchmarks.uvit [--device auto|cpu|cuda] [--net S/2] [--compile] [--json]

The plain one is written here from the paper's description, with what is customary: attention is
scaled_dot_product_attention on q, k and v in float32, and norm and head run on every token.  All share
their weights and run in turn in one process, in float32 and under bfloat16 autocast; a ratio (how many
times as fast as the plain one) is taken within each turn, and their median and quartiles are printed.
A training step is forward, backward and AdamW.  A GPU also gets compiled networks, as --compile gives
them to a CPU, and the share of the card's peak that each reaches.
"""

import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn, Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.timing import options_parser, prepare, Results, seconds, spread
from halfstep.config import NetConfig
from halfstep.models import UViT
from halfstep.models.time_embedding import sinusoid

S2 = dict(img_size=32, patch_size=2, in_chans=3, embed_dim=512, depth=12, num_heads=8)
NETS: dict[str, tuple[NetConfig, int, int]] = {
    "S/2": (S2, 4, 128),
    "M/4": (S2 | dict(img_size=64, patch_size=4, embed_dim=768, depth=16, num_heads=12), 2, 64),
    "L/2": (S2 | dict(in_chans=4, embed_dim=1024, depth=20, num_heads=16), 1, 64),
    "tiny": (S2 | dict(img_size=8, embed_dim=32, depth=2, num_heads=2), 2, 2),
}
"""Config, and images in a batch on a CPU and on a GPU."""

FORMS = "auto", "sdpa", "explicit"
DTYPES = {"fp32": None, "bf16": torch.bfloat16}
PEAKS = {"A100": (19.5e12, 312e12), "H100": (67e12, 989e12), "H200": (67e12, 989e12)}
"""Operations a second that the makers give, in float32 and (dense) bfloat16: SXM cards."""


class Plain(nn.Module):
    """A U-ViT without labels, with the parameter names that its weights come under."""

    def __init__(self, img_size, patch_size, in_chans, embed_dim, depth, num_heads):
        super().__init__()
        self.heads, self.patch, self.width = num_heads, patch_size, embed_dim
        tokens = 1 + (img_size // patch_size) ** 2
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, embed_dim))
        self.patch_embed = nn.ModuleDict(
            {"proj": nn.Conv2d(in_chans, embed_dim, patch_size, patch_size)}
        )
        self.in_blocks = nn.ModuleList(self._block() for _ in range(depth // 2))
        self.mid_block = self._block()
        self.out_blocks = nn.ModuleList(self._block(skip=True) for _ in range(depth // 2))
        self.norm = nn.LayerNorm(embed_dim)
        self.decoder_pred = nn.Linear(embed_dim, patch_size**2 * in_chans)
        self.final_layer = nn.Conv2d(in_chans, in_chans, 3, padding=1)

    def _block(self, skip: bool = False) -> nn.ModuleDict:
        d = self.width
        qkv, fc1, fc2 = nn.Linear(d, 3 * d, bias=False), nn.Linear(d, 4 * d), nn.Linear(4 * d, d)
        parts: dict[str, nn.Module] = {
            "norm1": nn.LayerNorm(d),
            "attn": nn.ModuleDict({"qkv": qkv, "proj": nn.Linear(d, d)}),
            "norm2": nn.LayerNorm(d),
            "mlp": nn.ModuleDict({"fc1": fc1, "fc2": fc2}),
        }
        return nn.ModuleDict(parts | ({"skip_linear": nn.Linear(2 * d, d)} if skip else {}))

    def _run(self, block: Any, h: Tensor) -> Tensor:
        b, n, d = h.shape
        qkv = block["attn"]["qkv"](block["norm1"](h))
        q, k, v = qkv.reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4).float()
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, d)
        h = h + block["attn"]["proj"](mixed)
        return h + block["mlp"]["fc2"](F.gelu(block["mlp"]["fc1"](block["norm2"](h))))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        b, c, height, width = x.shape
        patches = self.patch_embed["proj"](x).flatten(2).transpose(1, 2)
        h = torch.cat([sinusoid(t, self.width)[:, None], patches], 1) + self.pos_embed
        skips = []
        for block in self.in_blocks:
            h = self._run(block, h)
            skips.append(h)
        h = self._run(self.mid_block, h)
        for block in self.out_blocks:
            h = self._run(block, block["skip_linear"](torch.cat([h, skips.pop()], -1)))
        p = self.patch
        pixels = self.decoder_pred(self.norm(h))[:, 1:]
        pixels = pixels.reshape(b, height // p, width // p, p, p, c).permute(0, 5, 1, 3, 2, 4)
        return self.final_layer(pixels.reshape(x.shape))


@dataclass
class Bench:
    """The networks, by name, and the two things that are timed."""

    net: str
    device: torch.device
    compile: bool = False
    batch: int = 0
    """Images in a batch; 0 is the net's own number."""
    nets: dict[str, nn.Module] = field(init=False)

    def __post_init__(self) -> None:
        config, cpu, gpu = NETS[self.net]
        self.gpu = self.device.type == "cuda"
        self.batch = self.batch or (gpu if self.gpu else cpu)
        torch.manual_seed(0)
        first = UViT(**config).to(self.device)
        weights = first.state_dict(keep_vars=True)  # the parameters themselves, for all to share
        with torch.device("meta"):
            made: dict[str, nn.Module] = {"plain": Plain(**config)}
            made |= {form: UViT(**config, attention=form) for form in FORMS}
            if self.compile:
                made |= {"plain compiled": Plain(**config), "auto compiled": UViT(**config)}
        for name, net in made.items():
            net.load_state_dict(weights, assign=True)
            if "compiled" in name:
                net.compile()
        self.nets = made
        shape = self.batch, *first.shape
        self.x, self.noise = (torch.randn(shape, device=self.device) for _ in range(2))
        self.t = 1000 * torch.rand(self.batch, device=self.device)
        self.optimiser = torch.optim.AdamW(made["plain"].parameters(), lr=1e-6, fused=True)

    def forward(self, name: str, dtype: torch.dtype | None) -> Tensor:
        with torch.no_grad(), torch.autocast(self.device.type, dtype, enabled=dtype is not None):
            return self.nets[name](self.x, self.t)

    def training_step(self, name: str, dtype: torch.dtype | None) -> None:
        with torch.autocast(self.device.type, dtype, enabled=dtype is not None):
            out = self.nets[name](self.x, self.t)
        F.mse_loss(out.float(), self.noise).backward()
        self.optimiser.step()
        self.optimiser.zero_grad()

    def operations(self) -> int:
        """Operations of a forward of the batch, multiplies and adds apart; a training step has 3 times."""
        with torch.device("meta"):
            net, x = UViT(**NETS[self.net][0]), torch.zeros(self.x.shape)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            net(x, 0)
        return counter.get_total_flops()


def measure(bench: Bench, work: str, dtype: str, rounds: int) -> Results:
    """Milliseconds of each network by name, and its speed relative to the plain one."""
    run = getattr(bench, work)
    names = list(bench.nets)

    def timed(name: str) -> float:
        return seconds(lambda: run(name, DTYPES[dtype]), bench.device, 10 if bench.gpu else 1)

    turns = []
    for k in range(-1, rounds):  # the first is warm-up, with compilation
        # In both orders, so that a machine that becomes slower or faster favours none.
        turn = {name: timed(name) for name in (names if k % 2 else names[::-1])}
        turns += [turn] if k >= 0 else []
        print(f"{dtype} {work}: {k + 1} of {rounds} turns", file=sys.stderr, flush=True)
    ratios = {name: spread([turn["plain"] / turn[name] for turn in turns]) for name in names}
    ratios["auto to explicit"] = spread([turn["explicit"] / turn["auto"] for turn in turns])
    medians = {name: statistics.median(turn[name] for turn in turns) for name in names}
    result = {"work": work, "dtype": dtype, "ms": {n: 1000 * s for n, s in medians.items()}}
    if peak := _peak(bench.device, dtype):
        operations = bench.operations() * (1 if work == "forward" else 3)
        result["share of peak"] = {name: operations / s / peak for name, s in medians.items()}
    return result | {"times as fast": ratios}


def _peak(device: torch.device, dtype: str) -> float | None:
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    peaks = next((peaks for name, peaks in PEAKS.items() if name in card), None)
    return peaks[list(DTYPES).index(dtype)] if peaks else None


def table(results: Results) -> str:
    """The results as a small table."""
    lines = [
        "{net}, {batch} images, {device}, {threads} threads, torch {torch}, {rounds} rounds".format(
            **results
        ),
        f"{'':20}{'':18}{'ms':>9}{'times as fast':>15}   {'quartiles':<16}{'of peak':>8}",
    ]
    for result in results["results"]:
        first = f"{result['dtype']} {result['work'].replace('_', ' ')}"
        for name, row in result["times as fast"].items():
            ms = f"{result['ms'][name]:>9.1f}" if name in result["ms"] else " " * 9
            quartiles = f"{row['low']:.3f} to {row['high']:.3f}"
            share = result.get("share of peak", {}).get(name)
            lines.append(
                f"{first:<20}{name:<18}{ms}{row['ratio']:>15.3f}   {quartiles:<16}"
                + (f"{share:>8.1%}" if share else "")
            )
            first = ""
    return "\n".join(line.rstrip() for line in lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = options_parser("uvit", __doc__, rounds=7)
    parser.add_argument("--net", choices=list(NETS), default="S/2")
    parser.add_argument("--compile", action="store_true", help="compiled ones too; always on a GPU")
    parser.add_argument("--batch", type=int, default=0, help="images; 0 is the net's own")
    options = parser.parse_args(arguments)

    device, setting = prepare(options)
    bench = Bench(options.net, device, options.compile or device.type == "cuda", options.batch)
    results = {
        **setting,
        "net": options.net,
        "batch": bench.batch,
        "rounds": options.rounds,
        "results": [
            measure(bench, work, dtype, options.rounds)
            for dtype in DTYPES
            for work in ("forward", "training_step")
        ],
    }
    print(json.dumps(results, indent=1) if options.json else table(results))


if __name__ == "__main__":
    main()
