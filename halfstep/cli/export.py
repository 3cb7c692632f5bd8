"""`halfstep export`: a student alone, for whoever uses it: no run, no optimiser, no teacher."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
from rich.console import Console
from torch import nn, Tensor

from halfstep import files
from halfstep.cli.card import classifier_card, pipeline_card, program_card, sizes
from halfstep.cli.options import parse
from halfstep.cli.progress import say, terminal
from halfstep.config.fields import POSITIONAL
from halfstep.errors import CheckpointError, ConfigError
from halfstep.kinds import Count
from halfstep.nets.classifiers import example_shape
from halfstep.nets.classifiers_on_disk import classifier_in, load_classifier, save_classifier
from halfstep.noise import sample_noise
from halfstep.pipeline import Pipeline
from halfstep.pipeline.program import (
    conditions_of,
    export_program,
    refuse_unexportable,
    walked,
)
from halfstep.storage import write_text
from halfstep.workflows.locate import locate_pipeline

DTYPES = {"float32": None, "float16": torch.float16, "bfloat16": torch.bfloat16}
COMPARED = 8
"""Samples that the written student and the one in the run both draw."""
PROGRAM = "student.pt2"


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write a student alone into a folder: its weights, how it is sampled, and a README."""

    student: Annotated[Path, POSITIONAL]
    """A run, one of its stages, a student's folder, or a classifier's."""
    out: Path
    """A new folder."""
    steps: Count | None = None
    """Which of a run's students; the one that passed its gate, or of the fewest steps, by default."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Of the weights in the file: half as large in the other two, and read back as float32."""
    format: Literal["halfstep", "torch-export"] = "halfstep"
    """torch-export writes student.pt2: one step of DDIM as a program that needs torch alone."""
    net: str | None = None
    """package.module:function, if the network is one of your own."""


def export(argv: Sequence[str]) -> int:
    """Write, read again, compare; say what was found."""
    console = terminal()
    options = parse(Export, argv, prog="halfstep export")
    if options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())):
        raise ConfigError(f"'{options.out}' is there already: give a new folder as --out")
    files.check_writable(options.out, "choose another --out")
    if options.format == "torch-export" and options.dtype != "float32":
        raise ConfigError(f"student.pt2 is written in float32: leave --dtype {options.dtype} out")
    with _whole(options.out):
        classifier = classifier_in(options.student)
        if classifier is not None:
            _classifier(console, options, classifier)
        else:
            found = locate_pipeline(options.student, steps=options.steps, net=options.net)
            if options.format == "torch-export":
                _program(console, options, found)
            else:
                _pipeline(console, options, found)
    for path in sorted(options.out.iterdir()):
        say(console, "written", f"{path} ({path.stat().st_size:,} bytes)")
    return 0


@contextmanager
def _whole(folder: Path) -> Iterator[None]:
    """Around filling a new folder: when that fails it is empty, or not there, as before."""
    there = folder.exists()
    try:
        yield
    except BaseException:
        for path in list(folder.iterdir()) if there else [folder]:
            files.remove(path)
        raise


def _pipeline(console: Console, options: Export, found: Pipeline) -> None:
    dtype = DTYPES[options.dtype]
    _refuse_int8(found.denoiser.net, dtype)
    found.save(options.out, dtype=dtype)
    again = Pipeline.load(options.out, net=options.net)
    _compared(console, _drawn(found), _drawn(again), exact=dtype is None)
    write_text(options.out / "README.md", pipeline_card(found, options.student, options.dtype))


def _refuse_int8(net: nn.Module, dtype: torch.dtype | None) -> None:
    if dtype is not None and getattr(net, "quantised", None):
        raise ConfigError("this student is int8: leave --dtype out")


def _classifier(console: Console, options: Export, place: Path) -> None:
    if options.format == "torch-export" or options.steps is not None:
        raise ConfigError("this is a classifier: leave --format and --steps out")
    found, dtype = load_classifier(place, net=options.net), DTYPES[options.dtype]
    _refuse_int8(found, dtype)
    save_classifier(found, options.out, dtype=dtype)
    again = load_classifier(options.out, net=options.net)
    with torch.no_grad():
        x = sample_noise(0, range(COMPARED), example_shape(found))
        _compared(console, found(x), again(x), exact=dtype is None)
    write_text(options.out / "README.md", classifier_card(found, options.dtype))


def _program(console: Console, options: Export, found: Pipeline) -> None:
    refuse_unexportable(found)
    steps = options.steps if not found.times else None
    program = export_program(found, steps)
    held = io.BytesIO()  # torch's own writer ends the process where the disk is full
    torch.export.save(program.exported, held)
    with files.replacing(files.make_folder(options.out) / PROGRAM) as (part,):
        files.fill(part, held.getbuffer())
    again = replace(program, exported=torch.export.load(options.out / PROGRAM))
    n = min(COMPARED, program.batch[1] or COMPARED)
    noise = sample_noise(0, range(n), found.shape)
    drawn = walked(again, noise, _conditions(found, n))
    _compared(console, _drawn(found, program.steps)[:n], drawn, exact=False)
    say(console, "batch", sizes(program))
    write_text(options.out / "README.md", program_card(found, options.student, program))


def _conditions(pipeline: Pipeline, n: int) -> list[Tensor]:
    """What `Pipeline.sample` tells the network where nothing is asked."""
    told = {"label": torch.arange(n) % max(len(pipeline.classes), 1)}
    if pipeline.empty is not None:
        told["context"] = pipeline.empty.expand(n, *pipeline.empty.shape)
    if pipeline.guidance is not None:
        told["guidance"] = torch.full((n,), _scale(pipeline))
    return [told[name] for name in conditions_of(pipeline)]


def _scale(pipeline: Pipeline) -> float:
    return 1.0 if pipeline.guidance is None else pipeline.guidance[0]


def _drawn(pipeline: Pipeline, steps: int | None = None) -> Tensor:
    """Samples, or of a student that encodes the noise of some."""
    if pipeline.made_for == "encode":
        images = sample_noise(0, range(COMPARED), pipeline.shape).clamp(-1, 1)
        return replace(pipeline, codec=None).encode(images, guidance=_scale(pipeline))
    return pipeline.sample(COMPARED, steps=steps, guidance=_scale(pipeline), latents=True)


def _compared(console: Console, own: Tensor, again: Tensor, *, exact: bool) -> None:
    """Say whether what was written does what was read; in full precision it must, to the bit."""
    if torch.equal(own, again):
        say(console, "the same", f"to the bit, on {len(own)} of the same noise")
    elif exact:
        raise CheckpointError(
            "what was written and read again gives other numbers than the student, so it was removed: the "
            "disk or the network's own code changes them"
        )
    else:
        off = (own - again).double().square().mean().sqrt()
        say(console, "differs", f"by {off:.2e} (rms), on {len(own)} of the same noise")
