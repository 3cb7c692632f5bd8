"""Check that a change keeps every number: record them before it, and compare after it.

    python -m benchmarks.numbers NUMBERS.json [--against BEFORE.json]

A record has the losses of the first updates of every method, samples of the shipped teacher and of its guided
students with every sampler, and the report of a small run: numbers as they are, tensors by their sha256.
With --against the differences are printed, and the exit status is 1.  Both records must be made on the same
machine with the same libraries.
"""

import argparse
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from importlib.resources import as_file, files
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.timing import Results
from halfstep.cli import main as halfstep
from halfstep.diffusion.samplers import SCHEDULER
from halfstep.errors import HalfstepError
from halfstep.pipeline import Pipeline
from halfstep.pipeline.samplers import NAMES

UPDATES = 50
LOOK = "--device cpu --log-every 1"
STEP = "--batch-size 32 --learning-rate 3e-4"
"""Given, so that no default decides a number."""
FEW = f"--updates {UPDATES} {STEP} {LOOK}"
SEGMENTS = f"--start 4 --first 2 --stop 1 --tolerance 0 {FEW}"
HALVE = f"--start 4 --stop 1 --updates {UPDATES} {STEP} --tolerance 0 {LOOK}"
SMALL = "--data digits --net uvit --net-config embed_dim 32 depth 4 num_heads 2 patch_size 2"
RUNS = {
    "denoising": f"train denoiser {SMALL} --labels --drop-labels 0.1 --ema 0.9 {FEW}",
    "denoising-eps": f"train denoiser {SMALL} --predicts eps --noise-schedule beta-table --flip {FEW}",
    "denoising-muon": f"train denoiser {SMALL} --optimiser muon --micro-batch-size 12 --warmup 9 {FEW}",
    "denoising-points": f"train denoiser --data two-moons --net mlp {FEW}",
    "classification": f"train classifier --data digits --net cnn --ema 0.9 --augment crop {FEW}",
    "autoencoding": f"train codec --data digits --width 4 {FEW}",
    "progressive": f"distill progressive --teacher denoising --data digits {HALVE}",
    "multistep-consistency": f"distill multistep-consistency --teacher denoising --data digits {SEGMENTS}",
    "flow-map": f"distill flow-map --teacher denoising --data digits {SEGMENTS}",
    "parallel-decoding": f"distill parallel-decoding --teacher denoising --data digits {SEGMENTS}",
    "cached-walks": f"distill cached-walks --teacher denoising --data digits --noises 32 {SEGMENTS}",
    "guided": f"distill guided --teacher denoising --data digits --start 4 --stop 2 "
    f"--halving-updates {UPDATES} --tolerance 0 {FEW}",
    "stochastic": "distill stochastic --teacher denoising --data digits --start 4 --stop 2 "
    f"--tolerance 0 {FEW}",
    "encoder": f"distill encoder --teacher denoising --data digits --start 4 --stop 1 {FEW}",
    "shrink": f"distill shrink --teacher denoising --data digits --depth 2 {FEW}",
    "plan": "distill plan --teacher denoising --data digits --depth 2 --start 4 --stop 2 "
    f"--halving-updates {UPDATES} --tolerance 50 --samples 16 --full 8 {FEW}",
    "reparameterise": f"distill reparameterise --teacher denoising-eps --data digits {FEW}",
    "knowledge": f"distill knowledge --teacher classification --data digits --net shallow {FEW}",
    "patient-teacher": "distill knowledge --teacher classification --data digits --net shallow "
    f"--recipe patient-teacher {FEW}",
}
"""The commands; a teacher is the folder of an earlier one."""
SCHEDULERS = (
    "DDIM",
    "DDPM",
    "DPMSolverMultistep",
    "EulerDiscrete",
    "HeunDiscrete",
    "UniPCMultistep",
)
EVALUATE = "--samples 64 --full 16 --features digits --split-samples 0 --cost-rounds 1 --device cpu"


def losses(folder: Path) -> list[float]:
    """The losses of metrics.jsonl, in order."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def digest(tensor: Tensor) -> str:
    """A tensor's shape and bits."""
    numbers = tensor.detach().cpu().contiguous()
    return f"{tuple(numbers.shape)} {hashlib.sha256(numbers.numpy().tobytes()).hexdigest()[:16]}"


def weights(folder: Path) -> dict[str, str]:
    """A digest of the tensors in the file of each stage."""
    digests = {}
    for file in sorted(folder.glob("stages/*/*.safetensors")):
        tensors = load_file(file)
        parts = "".join(f"{name} {digest(tensors[name])}" for name in sorted(tensors))
        digests[file.parent.name] = hashlib.sha256(parts.encode()).hexdigest()[:16]
    return digests


def run(command: str) -> None:
    """Run a command without its output; its error ends the record."""
    output = StringIO()
    with redirect_stdout(output), redirect_stderr(output):
        status = halfstep(command.split())
    if status:
        raise SystemExit(f"halfstep {command}: exit {status}\n{output.getvalue()[-2000:]}")


def samples() -> Iterator[tuple[str, str]]:
    """Digests of samples of the shipped models with every sampler, or the class of the error."""
    with as_file(files("halfstep") / "assets") as assets:
        teacher = Pipeline.load(assets / "digits-teacher")
        names = [name for name in NAMES if name != SCHEDULER]
        for sampler in (*names, *(f"diffusers:{name}Scheduler" for name in SCHEDULERS)):
            for steps in (1, 4, 9):
                yield f"teacher {sampler} {steps}", _drawn(teacher, sampler=sampler, steps=steps)
        for place in sorted((assets / "digits-guided").glob("*-steps")):
            student = Pipeline.load(place)
            for scale in (1.0, 2.5):
                yield f"guided {place.name} at {scale}", _drawn(student, guidance_scale=scale)


def _drawn(pipeline: Pipeline, **options: Any) -> str:
    try:
        return digest(pipeline.sample(8, seed=3, **options))
    except HalfstepError as error:
        return type(error).__name__


def measured(report: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The numbers of a report that do not depend on the machine or the time."""
    if isinstance(report, dict):
        for name, value in report.items():
            if not any(
                word in name for word in ("second", "cost", "time", "sha", "folder", "bytes")
            ):
                yield from measured(value, f"{path}/{name}")
    elif isinstance(report, list):
        for k, value in enumerate(report):
            yield from measured(value, f"{path}/{k}")
    elif isinstance(report, int | float):
        yield path, report


def record() -> Results:
    """All numbers by name; the runs are written into the current folder."""
    numbers = Results()
    for name, command in RUNS.items():
        print(name, file=sys.stderr, flush=True)
        run(f"{command} --out {name}")
        numbers[f"losses {name}"] = losses(Path(name))
        numbers |= {f"weights {name}/{k}": value for k, value in weights(Path(name)).items()}
    print("samples", file=sys.stderr, flush=True)
    numbers |= dict(samples())
    print("report", file=sys.stderr, flush=True)
    run(f"evaluate progressive {EVALUATE}")
    report = json.loads(Path("progressive/report.json").read_text())
    numbers |= {f"report {name}": value for name, value in measured(report)}
    return numbers


RENAMED = {
    f"report /run/config/{old}": f"report /run/config/{new}"
    for old, new in {
        "batch": "batch_size", "micro_batch": "micro_batch_size", "rate": "learning_rate",
        "clip": "max_grad_norm",
    }.items()
}  # fmt: skip
"""Names in an earlier record, with their present names."""


def differences(before: Results, now: Results) -> list[str]:
    """A line for each name whose numbers are not the same; nan equals itself."""
    if not before.keys() & set(RENAMED.values()):
        before = {RENAMED.get(name, name): value for name, value in before.items()}
    return [
        f"{name}: {_short(before.get(name))} -> {_short(now.get(name))}"
        for name in sorted((before.keys() | now.keys()) - {"report /format"})
        if json.dumps(before.get(name)) != json.dumps(now.get(name))
    ]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 60 else f"{text[:57]}..."


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="the record's file")
    parser.add_argument("--against", type=Path, help="an earlier record")
    options = parser.parse_args()
    torch.set_num_threads(1)
    out, against = options.out.resolve(), options.against and options.against.resolve()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        now = record()
    out.write_text(json.dumps(now, indent=1) + "\n", encoding="utf-8")
    if against is None:
        print(f"{len(now)} numbers recorded")
        return 0
    lines = differences(json.loads(against.read_text(encoding="utf-8")), now)
    print(*lines, f"{len(lines)} of {len(now)} differ", sep="\n")
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
