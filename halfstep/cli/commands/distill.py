"""`halfstep distill METHOD`, for every registered method."""

import shlex
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast, ClassVar, Generic, TYPE_CHECKING, TypeVar

from rich.console import Console

from halfstep.cli.commands.gate_options import (
    auto_start,
    bind_gate,
    GateOptions,
    OneScaleGateOptions,
)
from halfstep.cli.commands.no_data import walks_of, without_data
from halfstep.cli.console.next_command import beside, say_halving
from halfstep.cli.console.progress import counting, loading, reading, say, terminal
from halfstep.cli.console.run_lines import (
    describe,
    describe_data,
    net_option,
    run_context,
    updates_on,
)
from halfstep.cli.console.run_plan import plan_only
from halfstep.cli.parse import parse
from halfstep.config.validate import Count, Place, Validated
from halfstep.data import Data, refuse_other_shape
from halfstep.data.no_data import NO_DATA
from halfstep.errors import ConfigError
from halfstep.evaluation.gate import Decision
from halfstep.evaluation.quality_gate import full_for_auto
from halfstep.methods import Chain, Method, METHODS, Progressive
from halfstep.methods.default_updates import default_batch, number_of
from halfstep.methods.stages import cost_after
from halfstep.models.half_storage import stored_dtype
from halfstep.models.lora import Lora
from halfstep.pipeline import Pipeline
from halfstep.training import distill as distil_pipeline
from halfstep.training.api import AUTOCAST, refuse_teacher, resolve, sized
from halfstep.training.config import TrainingOptions
from halfstep.training.distributed import pick_device
from halfstep.training.stages import RunOptions
from halfstep.workflows.default_sizes import default_learning_rate
from halfstep.workflows.locate import chosen_pipeline, DiffusersOptions, Official
from halfstep.workflows.options import (
    DataOptions,
    EncodingOptions,
    FolderOptions,
    MemoryOptions,
    SampledOptions,
    WalksOptions,
    WholeNetworkOptions,
)

if TYPE_CHECKING:
    from halfstep.workflows.teacher_latents import TeacherLatents

M = TypeVar("M")


@dataclass(frozen=True, kw_only=True)
class FewTeacherOptions:
    """The teacher."""

    teacher: Place | None = None
    """A teacher's folder, or the run that made it. Of diffusers: a folder, a .safetensors file, or OWNER/NAME
    on the hub."""
    official: Official = field(default_factory=Official)
    net: str | None = None
    """package.module:function, if the teacher's network is one of your own."""
    diffusers: ClassVar[DiffusersOptions] = DiffusersOptions()


@dataclass(frozen=True, kw_only=True)
class TeacherOptions(FewTeacherOptions):
    """The teacher."""

    diffusers: DiffusersOptions = field(default_factory=DiffusersOptions)  # type: ignore[misc]


@dataclass(frozen=True, kw_only=True)
class LoraOptions(Validated):
    """An adapter in place of all weights."""

    lora_rank: Count | None = None
    """Train a LoRA of this rank, such as 16, in place of all weights, which are then in memory once."""

    def build(self) -> Lora | None:
        """The LoRA of these options, if any."""
        return None if self.lora_rank is None else Lora(rank=self.lora_rank)


@dataclass(frozen=True, kw_only=True)
class DistillOptions(Generic[M]):
    """Make a student that needs fewer steps."""

    folder: SampledOptions
    dataset: DataOptions
    encoding: EncodingOptions = field(default_factory=EncodingOptions)
    teacher: TeacherOptions
    method: M
    training: TrainingOptions = field(default_factory=TrainingOptions)
    lora: ClassVar[LoraOptions] = LoraOptions()
    memory: MemoryOptions = field(default_factory=MemoryOptions)


@dataclass(frozen=True, kw_only=True)
class PlanOptions(Generic[M]):
    """Make a student that needs fewer steps; without the options that a budget of 60 leaves no room for."""

    folder: SampledOptions
    dataset: DataOptions
    teacher: FewTeacherOptions
    method: M
    training: TrainingOptions = field(default_factory=TrainingOptions)
    gate: GateOptions = field(default_factory=GateOptions)
    encoding: ClassVar[EncodingOptions] = EncodingOptions()
    lora: ClassVar[LoraOptions] = LoraOptions()


@dataclass(frozen=True, kw_only=True)
class LoraDistillOptions(DistillOptions[M]):
    """Make a student that needs fewer steps, or a LoRA of the teacher that does."""

    lora: LoraOptions = field(default_factory=LoraOptions)  # type: ignore[misc]


@dataclass(frozen=True, kw_only=True)
class GatedDistillOptions(LoraDistillOptions[M]):
    """Make a student that needs fewer steps, until a quality gate ends the run."""

    gate: GateOptions = field(default_factory=GateOptions)


@dataclass(frozen=True, kw_only=True)
class GatedWholeOptions(DistillOptions[M]):
    """Make a student that needs fewer steps, whose network is no adapter of its teacher's."""

    gate: GateOptions = field(default_factory=GateOptions)


@dataclass(frozen=True, kw_only=True)
class WalksDistillOptions(LoraDistillOptions[M]):
    """Make a student that needs fewer steps, from kept walks of its whole teacher."""

    memory: WholeNetworkOptions = field(default_factory=WholeNetworkOptions)  # type: ignore[assignment]
    gate: OneScaleGateOptions = field(default_factory=OneScaleGateOptions)
    kept: WalksOptions = field(default_factory=WalksOptions)


def main(name: str, argv: Sequence[str]) -> int:
    """Distil with the named method; print the folders of the students."""
    console, kind, args = terminal(), METHODS[name], list(argv)
    prog = f"halfstep distill {name}"
    auto = kind is Progressive and auto_start(args)
    options: Any = parse(options_for(name), args, prog=prog)
    options.folder.check()
    folder, method = options.folder, options.method.build()
    if none := options.dataset.data in NO_DATA:
        options = without_data(options, method, auto=auto)
    named, official = options.teacher.teacher, cast(Official, options.teacher.official)
    asks = f"{prog} needs --teacher FOLDER"
    find = partial(
        chosen_pipeline, asks, named, official, net=options.teacher.net,
        diffusers=options.teacher.diffusers, size=options.dataset.size,
        dtype=None if options.lora.build() is None else AUTOCAST[options.training.precision],
    )  # fmt: skip
    teachers = [find()]
    images = None if none else _images(console, options, teachers[0])
    full = _before_data(options, method, teachers[0], auto=auto, are_images=images is not None)
    data, close = _data(console, options, images, teachers[0])
    del images  # with the teacher
    rate = default_learning_rate(teachers[0].denoiser.net)
    training = options.training.resolved(default_batch(number_of(data)), rate)
    options = replace(options, training=training)
    teachers[0] = official.decoding(teachers[0], data)

    # The weights of a LoRA's base, in memory anyway: the gate reads no other copy.
    kept = teachers[0] if _is_base(options, teachers[0]) else None

    def load() -> Pipeline:
        return kept or official.decoding(find(), data)

    method = sized(method, teachers[0], data, training.batch_size)
    method = _resolve(console, method, teachers[0], data, folder)
    options, method, gate = bind_gate(options, method, teachers[0], data, load, console, full=full)

    def work(job: RunOptions) -> Pipeline:
        # `pop` keeps no reference: from the second stage on the teacher's memory is free.
        return distil_pipeline(
            teachers.pop(), data, folder.out, method=method, training=training,
            lora=options.lora.build(), job=job,
        )  # fmt: skip

    if folder.dry_run:
        with close:
            return plan_only(console, options, work)
    plan = method.plan(teachers[0])
    updates = sum(stage.updates for stage in plan)
    say(console, "teacher", f"{named or official.model}: {describe(teachers[0])}")
    say(console, "data", describe_data(options.dataset, data))
    if none and method.gated and not gate:
        say(console, "gate", "off without data, with which it compares")
    say(console, "plan", method.plan_line(teachers[0]))
    say(console, "updates", updates_on(updates, training, folder.device))
    context = run_context(
        folder, options, console, gate=gate,
        cost_after=lambda stage: cost_after(plan, stage.name, training.batch_size),
    )  # fmt: skip
    with context as job:
        student = work(job)
    best = gate.best if gate else None
    if gate and best is None:
        say(
            console,
            "best",
            "none passed the gate: train longer (--updates), or halve without (--tolerance 0)",
        )
    _print(console, folder, student, options.teacher.net, best, without_data=none)
    return 0


def _is_base(options: Any, teacher: Pipeline) -> bool:
    """Whether the base of a LoRA has the teacher's own weights: neither cast, divided nor offloaded."""
    if options.lora.build() is None or options.memory.shard or options.memory.offload:
        return False
    return AUTOCAST[options.training.precision] == stored_dtype(teacher.denoiser.net)


def _data(
    console: Console, options: Any, images: "TeacherLatents | None", teacher: Pipeline
) -> tuple[Data, AbstractContextManager[object]]:
    """The data, images encoded; and a context that ends with the use of a dry run's."""
    folder, dataset, context = options.folder, options.dataset, ExitStack()
    if dataset.data in NO_DATA:
        return walks_of(console, options, teacher), context
    if images is None:
        return loading(console, dataset), context
    say(console, "latents", str(images))
    if folder.dry_run:
        return context.enter_context(images.rehearsed(folder.device)), context
    if images.complete:
        return images.encode(folder.device), context
    with counting(console, f"encoding {len(images.images):,} images") as progress:
        return images.encode(folder.device, progress=progress), context


def _resolve(
    console: Console, method: Method, teacher: Pipeline, data: Data, folder: FolderOptions
) -> Method:
    """The method with the options filled in that depend on the data."""
    if not method.needs_data:
        return method
    teacher.to(pick_device(folder.device))
    with counting(console, "scoring blocks on the data") as progress:
        return resolve(method, teacher, data, folder.out, progress=progress)


def _images(console: Console, options: Any, teacher: Pipeline) -> "TeacherLatents | None":
    """The images that become latents of the teacher's codec, if the data are images and it has one."""
    if teacher.codec is None and options.encoding == EncodingOptions():
        return None
    from halfstep.workflows.teacher_latents import teacher_latents  # imports Pillow

    with reading(console, options.dataset.data) as progress:
        return teacher_latents(
            teacher, options.dataset, options.folder.out, options.encoding, progress=progress
        )


def options_for(name: str) -> Any:
    """The class of all options of `halfstep distill NAME`."""
    options = METHODS[name].options()
    if METHODS[name] is Chain:
        return PlanOptions[options]  # type: ignore[valid-type]
    if METHODS[name].keeps_walks:
        return WalksDistillOptions[options]  # type: ignore[valid-type]
    lora = METHODS[name].keeps_network
    if METHODS[name].gated:
        return (GatedDistillOptions if lora else GatedWholeOptions)[options]
    return LoraDistillOptions[options] if lora else DistillOptions[options]  # type: ignore[valid-type]


def _before_data(
    options: Any, method: Method, teacher: Pipeline, *, auto: bool, are_images: bool
) -> int | None:
    """Refuse options before data are read; return the teacher's full steps for --start auto."""
    dataset = options.dataset
    if auto and options.folder.dry_run:
        raise ConfigError("--start auto is found by sampling: give --start a number for --dry-run")
    if not auto:  # which has no start yet
        refuse_teacher(method, teacher, options.lora.build())
    if not are_images:
        refuse_other_shape(
            dataset.data, teacher.shape, size=dataset.size, channels=dataset.channels
        )
    is_gated = hasattr(options, "gate")
    if not is_gated or not (auto or options.gate.tolerance != 0):
        return None
    gate = options.gate
    if auto:
        return full_for_auto(gate.build(), cast(Progressive, method), teacher)
    gate.build().full_steps_of(method, teacher)
    return None


def _print(
    console: Console, folder: FolderOptions, student: Pipeline, named_net: str | None,
    best: Decision | None, *, without_data: bool,
) -> None:  # fmt: skip
    """Print the students' folders, and the commands that sample and evaluate the best or the last one.

    best          decision on the last student that passed the gate
    without_data  whether the run has no data that it could be evaluated with
    """
    net, made = net_option(named_net), (folder.out / "stages").glob("[!.]*/pipeline.json")
    for stage in sorted((path.parent for path in made), reverse=True):  # many steps first
        say(console, "student", stage)
    if best:
        say(console, "best", folder.out / "stages" / best.stage)
    steps = f" --steps {best.steps if best else student.default_steps}" if student.times else ""
    low, high = student.guidance_range or (1.0, 1.0)
    scale = f" --guidance-scale {(low + high) / 2:g}" if student.guidance_range else ""
    out = shlex.quote(str(folder.out))
    if student.direction == "invert":
        say(
            console,
            "look",
            f"halfstep encode {out}{steps}{scale} --images DATA --out noise.safetensors{net}",
        )
    else:
        say(console, "look", f"halfstep sample {out}{steps}{scale} --out {out}/samples{net}")
    if student.times:
        data = " --data DATA" if without_data else ""
        say(console, "next", f"halfstep evaluate {out}{net}{data}")
    else:
        say_halving(console, folder.out, beside(folder.out, "student"), net=named_net)
