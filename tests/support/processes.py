"""Runs of two processes: the launcher, and the runs that two and one are compared in."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import torch

from halfstep.diffusion.denoiser import Denoiser
from halfstep.diffusion.prediction import V
from halfstep.diffusion.schedules import Cosine
from halfstep.evaluation.gate import Gate
from halfstep.methods import Progressive, Shrink
from halfstep.models import build
from halfstep.models.lora import Lora
from halfstep.pipeline import Pipeline
from tests.support.runs import Doubled, halve

METHOD = Progressive(start=8, stop=4, updates=(20,))
OPTIONS = {"batch_size": 12, "log_every": 1, "save_every": 8}
CASES = {
    "whole": {},
    "micro": {"micro_batch_size": 4},
    "clipped": {"max_grad_norm": 0.01, "weight_decay": 0.1},
    "lora": {"lora": Lora(rank=2), "micro_batch_size": 3},
}


def narrower(out, **options):
    """A student of half its teacher's width, whose features go through projectors: these are trained, too,
    and called beside the network, which alone is wrapped."""
    config = {
        "img_size": 4,
        "patch_size": 2,
        "in_chans": 1,
        "embed_dim": 8,
        "depth": 2,
        "num_heads": 2,
    }
    torch.manual_seed(0)
    denoiser = Denoiser(build("uvit", config), Cosine(), V()).double()
    images = torch.randn(24, 1, 4, 4, generator=torch.Generator().manual_seed(1)).clamp(-1, 1)
    return halve(
        out, method=Shrink(student={"embed_dim": "4"}, updates=20, mask=2.0),
        pipeline=Pipeline(denoiser, (1, 4, 4)), data=Doubled(images), **OPTIONS, **options,
    )  # fmt: skip


def launched(*arguments, processes=2, timeout=300):
    """A command under torchrun, warnings being errors: its exit status, what it said."""
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    environment["PYTHONWARNINGS"] = "error"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    with subprocess.Popen(
        [*launcher, "--standalone", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        finally:
            if process.poll() is None:  # it then ends its own two
                process.send_signal(signal.SIGTERM)
    return process.returncode, out, err


class ComparedError(Exception):
    """Raised instead of comparing values with other processes; has the values."""


def gate(**options):
    return Gate(lambda *args: None, options.pop("tolerance", 1.1), **options)
