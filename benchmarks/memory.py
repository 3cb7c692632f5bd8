"""The memory of a distillation by the byte, on a network so large that its activations do not count.

    python -m benchmarks.memory [CASE ...] [--width WIDTH] [--json]

Each case is a run of its own process, on a CPU: a progressive distillation from 4 steps to 1 of a U-ViT of 22
million parameters on samples of 4 x 4.  A LoRA's teacher is a U-Net of 221 million in a folder of diffusers,
which the case reads in half precision.  Printed are the most bytes of tensors that lived at once from the
beginning on, and the peak of the process' memory (RSS) over that of the same run of a network of nearly no
parameters; both per parameter.  4 bytes a parameter are a copy of the weights.
"""

import argparse
import ctypes
import gc
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.timing import Results
from halfstep.data import Dataset
from halfstep.diffusion.denoiser import Denoiser
from halfstep.diffusion.prediction import V
from halfstep.diffusion.schedules import Cosine
from halfstep.methods import Progressive
from halfstep.models import build
from halfstep.models.lora import Lora
from halfstep.pipeline import Pipeline
from halfstep.training import distill, RunOptions, TrainingConfig
from halfstep.workflows.live_bytes import LiveBytes

WIDTH, WIDE = 768, 1024
"""Widths of the U-ViT, and of a LoRA's U-Net: larger, as its process keeps some 40 MB of its start."""
CASES: dict[str, tuple[dict[str, Any], float]] = {
    "full": ({}, 20.0),
    "resumed": ({}, 20.0),
    "bf16": ({"precision": "bf16"}, 18.2),
    "adamw-8bit": ({"optimiser": "adamw-8bit"}, 16.8),
    "lora-bf16": ({"precision": "bf16"}, 2.8),
}
"""Training options of each case, and the bytes a parameter that it is held to, activations apart.

A LoRA's rank is 16.
"""


def run(case: str, width: int, folder: Path) -> int:
    """Distil a network of this width as the case says; returns its number of parameters."""
    return prepared(case, width, folder)()


def prepared(case: str, width: int, folder: Path) -> Callable[[], int]:
    """The case as a function without arguments, after what is not measured: saving a LoRA's teacher."""
    torch.manual_seed(0)
    if "lora" in case:
        save_unet(width, folder / "teacher")
        return partial(_distil_lora, case, width, folder)
    return partial(_distil, case, width, folder)


def save_unet(width: int, folder: Path) -> None:
    """A v teacher of diffusers with random weights."""
    from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

    net = UNet2DModel(
        sample_size=4, in_channels=1, out_channels=1, block_out_channels=(width,),
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), norm_num_groups=4,
    )  # fmt: skip
    scheduler = DDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    DDIMPipeline(net, scheduler).save_pretrained(folder)


def _distil_lora(case: str, width: int, folder: Path) -> int:
    options = CASES[case][0]
    dtype = torch.bfloat16 if options["precision"] == "bf16" else torch.float16
    teachers = [Pipeline.from_diffusers(folder / "teacher", dtype=dtype)]
    parameters = sum(p.numel() for p in teachers[0].denoiser.parameters())
    _halve(teachers, folder, options, 2, lora=Lora(rank=min(16, width // 16)))
    return parameters


def _distil(case: str, width: int, folder: Path) -> int:
    options = dict(
        img_size=4, patch_size=2, in_chans=1, embed_dim=width, depth=2, num_heads=width // 16
    )
    teachers = [Pipeline(Denoiser(build("uvit", options), Cosine(), V()).freeze(), (1, 4, 4))]
    parameters = sum(p.numel() for p in teachers[0].denoiser.parameters())
    if case == "resumed":
        teachers[0].save(folder / "teacher")
        _halve(teachers, folder, CASES[case][0], 1, 1)
        teachers.append(Pipeline.load(folder / "teacher"))
        _halve(teachers, folder, CASES[case][0], 1, 2)
    else:
        _halve(teachers, folder, CASES[case][0], 2)
    return parameters


def _halve(
    teachers: list[Pipeline],
    folder: Path,
    options: dict[str, Any],
    *updates: int,
    lora: Lora | None = None,
) -> None:
    """From 4 steps to 1; the list keeps no reference to the teacher."""
    torch.manual_seed(1)
    data = Dataset(torch.rand(8, 1, 4, 4) * 2 - 1)
    training = TrainingConfig(batch_size=2, save_every=2, log_every=2, **options)
    distill(
        teachers.pop(), data, folder / "run", training=training, lora=lora,
        method=Progressive(start=4, stop=1, updates=updates),
        job=RunOptions(device="cpu", extend=len(updates) > 1),
    )  # fmt: skip


def measured(case: str, width: int) -> Results:
    """The peaks of a case in this process, in bytes a parameter."""
    with tempfile.TemporaryDirectory() as folder:
        run(case, 64, Path(folder) / "small")
        large = prepared(case, width, Path(folder) / "large")
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        before = _memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM, the peak, begins again
        with LiveBytes() as live:
            parameters = large()
        rss = _memory("VmHWM") - before
    return {
        "case": case,
        "parameters": parameters,
        "tensors": live.peak / parameters,
        "rss": rss / parameters,
        "limit": CASES[case][1],
    }


def _memory(key: str) -> int:
    return int(re.findall(rf"{key}:\s+(\d+)", Path("/proc/self/status").read_text())[0]) * 1024


def in_process(case: str, width: int = 0) -> Results:
    """`measured` in a new process, whose allocator returns memory as it is freed."""
    width = width or (WIDE if "lora" in case else WIDTH)
    command = [sys.executable, "-m", "benchmarks.memory", case, "--width", str(width), "--here"]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    results: Results = json.loads(done.stdout.splitlines()[-1])
    return results


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"{', '.join(CASES)}; all of them")
    parser.add_argument("--width", type=int, default=0, help="of the network, a multiple of 16")
    parser.add_argument("--json", action="store_true", help="print a JSON object a line")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    for case in options.cases or CASES:
        result = (measured if options.here else in_process)(case, options.width)
        if options.json or options.here:
            print(json.dumps(result))
        else:
            print(
                f"{case:<12} {result['parameters']:>12,} parameters   tensors {result['tensors']:5.2f}   "
                f"rss {result['rss']:5.2f}   limit {result['limit']:g} bytes a parameter"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
