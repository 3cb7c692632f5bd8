"""A run whose students are LoRAs of the teacher's network: its base, and how stages are written and read."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from halfstep import storage
from halfstep.diffusion.denoiser import Denoiser
from halfstep.errors import ConfigError
from halfstep.methods.base import Method
from halfstep.methods.pipeline_like import PipelineLike
from halfstep.models.half_storage import stored_dtype
from halfstep.models.lora import Lora, LoraBase, LoraNet
from halfstep.pipeline import Pipeline
from halfstep.pipeline.description import LoraAbout
from halfstep.pipeline.lora_file import read_lora
from halfstep.pipeline.saving import keep_base, save_adapter


def check_lora(method: Method, teacher: PipelineLike) -> None:
    """`ConfigError` for a method whose students are other networks than the teacher's with an adapter."""
    if not method.keeps_network or method.builds_student:
        raise ConfigError(
            "a LoRA is an adapter of the teacher's network, and this student is another network: leave lora "
            "out (command line: --lora-rank)"
        )
    for stage in method.plan(teacher):
        low, high = stage.guidance_range or (1.0, 1.0)
        if low < high:
            raise ConfigError(
                f"a LoRA has no input for a guidance scale, so it cannot hold all from {low:g} to {high:g}: "
                f"give one scale twice, guidance_range=({high:g}, {high:g}) (command line: --guidance-range "
                f"{high:g} {high:g}), or leave lora out (--lora-rank)"
            )


def refuse_half(teacher: Pipeline, autocast: torch.dtype | None, lora: Lora | None) -> None:
    """`ConfigError` for a teacher read in half precision, unless it gets a LoRA under the same autocast."""
    if (dtype := stored_dtype(teacher.denoiser.net)) is None or (lora and autocast == dtype):
        return
    raise ConfigError(
        f"this teacher was read with dtype={dtype}, for a LoRA in that precision: give lora=Lora(rank=16) "
        f"and precision='{'fp16' if dtype == torch.float16 else 'bf16'}', or load it again without dtype"
    )


@dataclass(frozen=True)
class LoraRun:
    """The run of adapters of one rank.

    digest  `digest_of` the teacher's denoiser
    """

    lora: Lora
    digest: str
    _about: list[LoraAbout] = field(default_factory=list)

    def teacher(self, denoiser: Denoiser) -> Denoiser:
        """The frozen teacher as its base with adapters off, whose trainable copies are adapters of it."""
        net = LoraNet(LoraBase(denoiser.net, self.lora.rank, self.digest))
        base = Denoiser(
            net,
            denoiser.schedule,
            denoiser.parameterisation,
            time=denoiser.time,
            autocast=denoiser.autocast,
        )
        return base.freeze()

    def begin(self, teachers: list[Pipeline], run: Path) -> None:
        """Write RUN/base unless the teacher's origin holds it; the list is emptied, to keep no reference."""
        self._about[:] = [keep_base(teachers[0], run, self.lora.rank, self.digest)]
        teachers.clear()

    def write(self, student: Pipeline, folder: Path) -> None:
        """Write a stage."""
        save_adapter(student, folder, self._about[0])

    @staticmethod
    def read(student: nn.Module, folder: Path) -> None:
        """Read a stage's adapter into its student."""
        adapter = cast(Any, student).net.adapter
        storage.load_into(adapter, read_lora(folder).tensors, f"'{folder}'")

    @staticmethod
    def check(student: nn.Module) -> None:
        """`ConfigError` for a student that is no adapter."""
        if not isinstance(getattr(student, "net", None), LoraNet):
            raise ConfigError(
                "a LoRA is an adapter of the teacher's network, and this method trains another network: "
                "leave lora out (command line: --lora-rank)"
            )
