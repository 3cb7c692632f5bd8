"""Students of tiny pipelines of diffusers, made without training, and their export."""

import subprocess
import warnings
from dataclasses import replace

from halfstep import Pipeline
from halfstep.diffusion.denoiser import Denoiser
from halfstep.diffusion.prediction import V
from halfstep.diffusion.time_grids import trailing, uniform
from halfstep.models.with_guidance import with_guidance
from halfstep.pipeline.to_diffusers import draw
from tests.support.families import FAMILIES, SIZED
from tests.support.texts import lively


def student(name, folder, *, steps=4, guided=None, **options):
    """A student in `steps` steps of the family's pipeline, which is saved to the folder.

    guided   its range of scales, which its network takes
    options  fields of the student
    """
    theirs = FAMILIES[name]()
    theirs.save_pretrained(folder)
    return student_of(
        Pipeline.from_diffusers(folder, size=SIZED.get(name)), steps=steps, guided=guided, **options
    )


def student_of(teacher, *, steps=4, guided=None, **options):
    """A student of this teacher, of v on the trailing levels of a table, or on equal times of a flow."""
    old, levels = teacher.denoiser, getattr(teacher.denoiser.schedule, "levels", None)
    reads = old.parameterisation if levels is None else V()
    net = old.net if guided is None else lively(with_guidance(old.net, width=8))
    made = Denoiser(net, old.schedule, reads, time=old.time).freeze()
    times = uniform(steps) if levels is None else trailing(steps, levels=levels)
    range_ = teacher.guidance_range if guided is None else guided
    fields = {"times": (times,), "sampler": "ddim", "guidance_range": range_, **options}
    return replace(teacher, denoiser=made, **fields)


def draw_in_this_process(monkeypatch):
    """Spare a test the seconds of a new process: the proof's program runs in this one."""

    def run(command, **options):
        with warnings.catch_warnings(action="ignore"):  # as in a process of its own
            draw.draw(command[-1])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
