"""The bytes of a run at its peak, by part, and the options that save some of them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import nn, Tensor

from halfstep.data import Data
from halfstep.errors import ConfigError
from halfstep.methods.stages import Stage
from halfstep.models.gradient_checkpointing import checkpointing
from halfstep.models.half_storage import CAST
from halfstep.models.hooks import unwrap
from halfstep.models.lora import adaptable, LoraNet, shared_weights
from halfstep.rng import Draw
from halfstep.training import TrainingConfig
from halfstep.training.optimiser import BLOCK, has_8_bits, matrices
from halfstep.workflows.live_bytes import LiveBytes

SIZES = 2, 4
"""Samples of the two passes from which activations are scaled to a micro-batch."""
RANK = 16
"""Rank of the LoRA whose saving is told."""
STEP = 4
"""Bytes of a parameter's number of updates, float32."""
TEMPORARIES = 6
"""Copies in float32 of a parameter that a step with moments in 8 bits makes of it, uncompiled."""
LEVELS = 256
"""Values that a code of 8 bits stands for, in a table beside each moment."""


@dataclass(frozen=True)
class Activations:
    """The bytes of a forward and backward, with gradients, after each operation: a line in the samples."""

    constant: tuple[float, ...]
    per_sample: tuple[float, ...]

    def peak(self, samples: int) -> int:
        """The most bytes at once, of so many samples."""
        pairs = zip(self.constant, self.per_sample, strict=True)
        return max((round(c + k * samples) for c, k in pairs), default=0)

    @classmethod
    def measured(
        cls,
        loss: Callable[[int], Tensor],
        weights: Iterable[Tensor],
        trained: Sequence[nn.Parameter],
        *,
        accumulated: bool,
    ) -> "Activations":
        """Measured with the losses of 2 and 4 samples; gradients are discarded.

        weights      tensors that are not counted
        accumulated  gradients of an earlier micro-batch are there from the start
        """
        weights, histories = list(weights), list[list[int]]()
        device = trained[0].device.type
        for size in SIZES:
            gradients = [torch.zeros_like(p) for p in trained] if accumulated else []
            for p, gradient in zip(trained, gradients, strict=False):
                p.grad = gradient
            with LiveBytes([*weights, *gradients], device) as live:
                live.now = size_of(gradients)
                loss(size).backward()
            for p in trained:
                p.grad = None
            histories.append(live.history)
        few, many = histories
        if len(few) != len(many):  # the operations depend on the size: the peaks alone are compared
            few, many = [max(few)], [max(many)]
        low, high = SIZES
        slopes = [(b - a) / (high - low) for a, b in zip(few, many, strict=True)]
        constants = [a - low * slope for a, slope in zip(few, slopes, strict=True)]
        return cls(tuple(constants), tuple(slopes))


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Bytes of a run at its peak, which is within an update.

    teacher      the frozen networks' weights, in their dtype; of a LoRA its base
    student      its weights
    gradients    of the student's trained weights
    optimiser    moments
    average      the averaged weights; 0 without `ema`
    activations  all that a micro-batch needs besides: what the backward reads, and copies in half precision
    elsewhere    bytes in the CPU's memory, of an offloaded teacher
    start        bytes in the CPU's memory before the first update, of a LoRA's base in half precision and
                 the teacher beside it, if that was read in float32: its own peak
    savings      by option the bytes that it would save, alone, each at least 1 % of the peak
    """

    teacher: int
    student: int
    gradients: int
    optimiser: int
    average: int
    activations: int
    elsewhere: int = 0
    start: int = 0
    savings: tuple[tuple[str, int], ...] = ()

    @property
    def parts(self) -> dict[str, int]:
        """The parts by name, which together are the peak."""
        names = ("teacher", "student", "gradients", "optimiser", "average", "activations")
        return {name: getattr(self, name) for name in names}

    @property
    def peak(self) -> int:
        """All parts together."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class Run:
    """What the memory of a run depends on.

    loss       of so many samples, with the teacher's share
    frozen     the networks that are not trained
    offloaded  they wait in the CPU's memory
    any_scale  the student takes a range of guidance scales, which a LoRA does not
    """

    student: nn.Module
    frozen: tuple[nn.Module, ...]
    training: TrainingConfig
    loss: Callable[[int], Tensor]
    micro_batch: int
    offloaded: bool = False
    any_scale: bool = False

    @property
    def accumulates(self) -> bool:
        """Whether an update has several micro-batches."""
        return self.micro_batch < self.training.batch_size

    @cached_property
    def activations(self) -> Activations:
        """Of the run as it is."""
        return self._measured(nullcontext(), self.accumulates)

    @cached_property
    def trained(self) -> list[nn.Parameter]:
        return [p for p in self.student.parameters() if p.requires_grad]

    def _measured(self, how: AbstractContextManager[None], accumulated: bool) -> Activations:
        weights = tensors_of([self.student, *self.frozen])
        with how:
            return Activations.measured(self.loss, weights, self.trained, accumulated=accumulated)

    def plan(self) -> MemoryPlan:
        """The bytes of this run, without savings."""
        frozen = size_of(tensors_of(self.frozen)) - size_of(self._in_both())
        average = 4 * sum(p.numel() for p in self.student.parameters())
        return MemoryPlan(
            teacher=0 if self.offloaded else frozen,
            student=size_of(_own_tensors(self.student)),
            gradients=size_of(self.trained),
            optimiser=optimiser_bytes(self.student, self.training),
            average=average if self.training.ema else 0,
            activations=max(
                self.beyond_gradients(self.activations, self.micro_batch),
                step_bytes(self.trained, self.training),
            ),
            elsewhere=frozen if self.offloaded else 0,
            start=start_bytes(self.student),
        )

    def _in_both(self) -> list[Tensor]:
        """Tensors of the frozen networks that are the student's own."""
        own = {id(t) for t in _own_tensors(self.student)}
        return [t for t in tensors_of(self.frozen) if id(t) in own]

    def beyond_gradients(self, activations: Activations, samples: int) -> int:
        """The bytes of a forward and backward beyond the gradients, which are there in the end."""
        return max(activations.peak(samples) - size_of(self.trained), 0)

    def savings(self) -> Iterator[tuple[str, int]]:
        """The bytes that each option would save, where the run has not got it."""
        now, training = self.plan(), self.training
        if self.micro_batch > 1:
            split = self.activations if self.accumulates else self._measured(nullcontext(), True)
            yield "--micro-batch-size 1", now.activations - self.beyond_gradients(split, 1)
        try:
            recomputed = self._measured(checkpointing(self.student), self.accumulates)
        except ConfigError:  # a network without it
            recomputed = self.activations
        less = self.beyond_gradients(recomputed, self.micro_batch)
        yield "--gradient-checkpointing", now.activations - less
        if training.precision == "fp32" and not self.offloaded:
            yield "--precision bf16", sum(map(castable_bytes, self.frozen)) // 2
        in_8_bits = replace(training, optimiser="adamw-8bit")
        yield "--optimiser adamw-8bit", now.optimiser - optimiser_bytes(self.student, in_8_bits)
        yield "--ema 0", now.average
        adapter = None if self.any_scale else lora_parameters(self.student, RANK)
        if adapter is not None:
            # Weights, gradients and moments; the base is the teacher's.  Its activations take some more.
            own = now.student + now.gradients + now.optimiser + now.average
            yield f"--lora-rank {RANK}", own - 4 * adapter * (4 + bool(training.ema))
        on_cpu = self.trained[0].device.type == "cpu"
        if not on_cpu and not shared_weights([self.student]):
            yield "--offload", now.teacher


def memory_plan(
    stage: Stage,
    data: Data,
    training: TrainingConfig,
    device: torch.device,
    *,
    micro_batch: int = 0,
    offloaded: bool = False,
) -> MemoryPlan:
    """The bytes of a stage's updates, after a forward and backward of 2 and of 4 samples on this device.

    micro_batch  samples at a time; by default those of `training`
    offloaded    the teacher waits in the CPU's memory
    """
    micro = micro_batch or training.micro_batch_size or training.batch_size

    def loss(count: int) -> Tensor:
        batch = data.batch(torch.arange(count) % len(data)).to(device)
        draw = Draw.all(torch.Generator(device).manual_seed(count), count)
        total: Tensor = stage.objective(stage.student, batch, draw)
        return total.mean()

    networks = tuple(stage.objective.networks)
    low, high = stage.guidance_range or (1.0, 1.0)
    run = Run(stage.student, networks, training, loss, micro, offloaded, low < high)
    return with_savings(run)


def with_savings(run: Run) -> MemoryPlan:
    """The plan of a run with what each option would save."""
    plan = run.plan()
    worth = [(name, size) for name, size in run.savings() if size * 100 >= plan.peak]
    return replace(plan, savings=tuple(sorted(worth, key=lambda pair: -pair[1])))


def optimiser_bytes(student: nn.Module, training: TrainingConfig) -> int:
    """Bytes of the moments of a student's trained parameters."""
    trained = [p for p in student.parameters() if p.requires_grad]
    turned = {id(p) for p in matrices(student)} if training.optimiser == "muon" else set[int]()
    total = 0
    for p in trained:
        size = p.numel() * p.element_size()
        if id(p) in turned:
            total += size  # one momentum
        elif training.optimiser == "adamw-8bit" and has_8_bits(p):
            total += 2 * (p.numel() + 4 * (p.numel() // BLOCK) + 4 * LEVELS) + STEP
        else:
            total += 2 * size + STEP
    return total


def step_bytes(trained: Sequence[Tensor], training: TrainingConfig) -> int:
    """Bytes that a step of the optimiser takes for itself, beside which there are no activations."""
    if training.optimiser != "adamw-8bit":
        return 0  # one kernel, in place
    large = [p.numel() for p in trained if has_8_bits(p)]
    return TEMPORARIES * 4 * max(large, default=0)


def start_bytes(student: nn.Module) -> int:
    """Bytes of a LoRA's base beside the float32 weights that it was cast from; 0 if nothing was cast."""
    bases = [part.base for part in student.modules() if isinstance(part, LoraNet)]
    base = [p for base in bases if base.cast_here for p in base.weights]
    return size_of(base) + 2 * size_of(p for p in base if p.element_size() == 2)


def castable_bytes(network: nn.Module) -> int:
    """Bytes of a network's frozen float32 weights that autocast casts, those of a LoRA's base too."""
    loras = [part.base.net for part in network.modules() if isinstance(part, LoraNet)]
    parts = [part for net in (network, *loras) for part in net.modules() if type(part) in CAST]
    weights = {id(p): p for part in parts for p in part.parameters() if not p.requires_grad}
    return size_of(p for p in weights.values() if p.dtype == torch.float32)


def lora_parameters(student: nn.Module, rank: int) -> int | None:
    """The parameters of an adapter of this rank; None for a student that has none, or is one."""
    net = getattr(unwrap(student), "net", None)
    if net is None or isinstance(net, LoraNet):
        return None
    frozen = frozenset(name for name, p in net.named_parameters() if not p.requires_grad)
    sides = [layer.weight.flatten(1).shape for layer in adaptable(net, frozen).values()]
    return sum(min(rank, *shape) * sum(shape) for shape in sides) or None


def tensors_of(networks: Iterable[nn.Module]) -> list[Tensor]:
    """Parameters and buffers of networks, and the weights that LoRAs share; each once."""
    networks = list(networks)
    own = [t for network in networks for t in _own_tensors(network)]
    return list({id(t): t for t in [*own, *shared_weights(networks)]}.values())


def _own_tensors(network: nn.Module) -> list[Tensor]:
    return [*network.parameters(), *network.buffers()]


def size_of(tensors: Iterable[Tensor]) -> int:
    """The bytes of these tensors."""
    return sum(t.numel() * t.element_size() for t in tensors)
