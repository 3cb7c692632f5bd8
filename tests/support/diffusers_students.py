"""Students of tiny pipelines of diffusers, made without training, and their export."""

import subprocess
import warnings
from dataclasses import replace

from halfstep import Pipeline
from halfstep.diffusion.denoiser import Denoiser
from halfstep.diffusion.prediction import V
from halfstep.diffusion.time_grids import trailing, uniform
from halfstep.identity import digest_of
from halfstep.models.with_guidance import with_guidance
from halfstep.pipeline.saving import keep_base, save_adapter
from halfstep.pipeline.to_diffusers import draw
from tests.support.families import FAMILIES, SIZED
from tests.support.lora import lively as lively_lora, without_adapter
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


def lora_stage(name, folder, *, rank=2, steps=4):
    """A stage of a LoRA run of the family's pipeline; its teacher is saved to FOLDER/teacher."""
    FAMILIES[name]().save_pretrained(folder / "teacher")
    teacher = Pipeline.from_diffusers(folder / "teacher", size=SIZED.get(name))
    return lora_stage_of(teacher, folder / "run", rank=rank, steps=steps)


def lora_stage_of(teacher, run, *, rank=2, steps=4):
    """A stage of a LoRA run of this teacher, as `distill` writes it, with random values."""
    made, stage = student_of(teacher, steps=steps), run / "stages" / f"{steps:04}-steps"
    adapted = lively_lora(without_adapter(made.denoiser, rank).trainable_copy()).freeze()
    run.mkdir(exist_ok=True)
    about = keep_base(teacher, run, rank, digest_of(teacher.denoiser))
    save_adapter(replace(made, denoiser=adapted), stage, about)
    return stage


def draw_in_this_process(monkeypatch):
    """Spare a test the seconds of a new process: the proof's program runs in this one."""

    def run(command, **options):
        with warnings.catch_warnings(action="ignore"):  # as in a process of its own
            draw.draw(command[-1])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
