"""Denoiser: a network with its noise schedule and its parameterisation."""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Protocol, Self

import torch
from annotated_types import Ge, Le
from torch import nn, Tensor

from halfstep.batch import Cond
from halfstep.config.validate import Validated
from halfstep.diffusion.prediction import Parameterisation, Prediction
from halfstep.diffusion.schedules import arriving, Level, Schedule
from halfstep.errors import ConfigError


class Denoises(Protocol):
    """The interface that samplers and distillation targets use."""

    @property
    def schedule(self) -> Schedule: ...

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction: ...


class Teacher(Denoises, Protocol):
    """The interface that methods distil from, of `Denoiser`, `Guided` and `ClassifierGuided`."""

    @property
    def parameterisation(self) -> Parameterisation: ...

    @property
    def unguided(self) -> "Denoiser": ...

    @property
    def guided(self) -> bool: ...

    def trainable_copy(self) -> "Denoiser": ...

    def freeze(self) -> Self: ...


TimeFactor = Annotated[float, Ge(-(2**24)), Le(2**24)]
"""A factor within the range in which float32 represents every whole number."""


@dataclass(frozen=True)
class NetTime(Validated):
    """The time input of a network: `scale * t + offset`, or the same of sigma or the log-SNR (within +-20).

    A diffusers model on a table of 1000: scale 1000, offset -1 (t = (n + 1) / 1000, label n); of flow
    matching: 1000 sigma, or sigma itself (Flux). The official U-ViT: scale 999 (continuous), or 1000 and
    offset 0 (discrete, labels 1 to 1000).

    Args:
        of: the quantity that is scaled.
        scale: its factor.
        offset: added to it.

    Raises:
        ConfigError: a scale of 0, at which the network would not see the time.
    """

    of: Literal["t", "sigma", "logsnr"] = "t"
    scale: TimeFactor = 1000.0
    offset: TimeFactor = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if abs(self.scale) < 2**-24:
            raise ConfigError(
                f"a network that receives {self.scale:g} times the time does not see it: write a scale such "
                "as 1000"
            )

    def __call__(self, t: Tensor, schedule: Schedule) -> Tensor:
        return self._input(t, schedule.at)

    def arriving(self, t: Tensor, schedule: Schedule) -> Tensor:
        """The same of the end of a step: at t = 0 sigma is 0, and the log-SNR 20, on every schedule.

        Args:
            t: float [B], times in [0, 1].
            schedule: the noise schedule.

        Returns:
            float [B].
        """
        return self._input(t, lambda t: arriving(schedule, t))

    def _input(self, t: Tensor, level_at: Callable[[Tensor], Level]) -> Tensor:
        value = t
        if self.of != "t":
            level = level_at(t)
            value = level.sigma if self.of == "sigma" else level.logsnr.clamp(-20, 20)
        return self.scale * value + self.offset


def level_of(schedule: Schedule, t: Tensor, x: Tensor) -> Level:
    """The level of every sample, computed in t's dtype, returned in x's dtype and broadcastable to x.

    t  float [B] in [0, 1]; another shape raises `ConfigError`
    """
    if t.shape != x.shape[:1]:
        raise ConfigError(
            f"t must have one time per sample: expected shape [{x.shape[0]}], got {list(t.shape)}"
        )
    level = schedule.at(t.reshape(-1, *[1] * (x.ndim - 1)))
    return Level(level.alpha.to(x.dtype), level.sigma.to(x.dtype))


def _repeated(x: Tensor, level: Level, times: int) -> tuple[Tensor, Level]:
    """M copies of all rows, one after the other, with their levels."""

    def copies(value: Tensor) -> Tensor:
        return value.repeat(times, *[1] * (value.ndim - 1))

    return copies(x), Level(copies(level.alpha), copies(level.sigma))


class Denoiser(nn.Module):
    """A network that maps (x_t, t, cond) to a `Prediction`.

    It is called with x_t, float [B, ...], noisy data; t, float [B], the time in [0, 1], 0 data and 1
    noise (float64 keeps the level exact); and cond, a `Cond` or None. With `cond.heads` [B, M, N] it returns
    M predictions at each x_t, [M B, ...].

    Args:
        net: any module called as net(x_t, time, cond), with x_t's channels out (twice for `X0AndEps`).
        schedule: the noise schedule.
        parameterisation: the meaning of the network's output.
        time: the network's time input; None is 1000 t.
        autocast: dtype in which the network alone runs (bfloat16, float16), or None.

    Raises:
        ConfigError: times or outputs of another shape than x_t asks for, when it is called.
    """

    def __init__(
        self,
        net: nn.Module,
        schedule: Schedule,
        parameterisation: Parameterisation,
        *,
        time: NetTime | None = None,
        autocast: torch.dtype | None = None,
    ):
        super().__init__()
        refuse_outputs = getattr(net, "refuse_outputs", lambda reads: None)
        refuse_outputs(parameterisation.outputs)  # of an adapter: before anything is computed
        self.net, self.schedule, self.parameterisation = net, schedule, parameterisation
        self.time, self.autocast = time or NetTime(), autocast

    def level(self, t: Tensor, x: Tensor) -> Level:
        """`level_of` on this denoiser's schedule.

        Args:
            t: float [B], times in [0, 1].
            x: float [B, ...], to whose axes the level is broadcast.

        Raises:
            ConfigError: not one time a sample.
        """
        return level_of(self.schedule, t, x)

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        level = self.level(t, x_t)
        out = self.raw_output(x_t, t, cond)
        if cond is not None and cond.heads is not None and cond.heads.ndim == 3:
            x_t, level = _repeated(x_t, level, cond.heads.shape[1])
        self._check_output(out, x_t)
        return self.parameterisation.decode(out.to(x_t.dtype), x_t, level)

    def raw_output(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        """The network's raw output, computed in its own dtype or under autocast.

        Args:
            x_t: float [B, C, ...], noisy data.
            t: float [B], times in [0, 1].
            cond: the conditions, or None.

        Returns:
            float [B, C, ...], or [B, 2 C, ...] for `X0AndEps`.

        Raises:
            ConfigError: an output of another shape.
        """
        precision = (
            torch.autocast(x_t.device.type, self.autocast) if self.autocast else nullcontext()
        )
        weight = next(self.net.parameters(), x_t)
        # Of a LoRA its base's; of weights that are stored in half precision, the dtype before.
        dtype = getattr(self.net, "input_dtype", weight.dtype)
        # Times keep float32 at least: in bfloat16, 1000 is 4 off.
        wide = torch.promote_types(dtype, torch.float32)
        time = self.time(t, self.schedule).to(wide)
        if cond is not None and cond.t_end is not None:
            if cond.t_end.shape != t.shape:
                raise ConfigError(
                    f"t_end must have one time per sample: expected shape [{len(t)}], got "
                    f"{list(cond.t_end.shape)}"
                )
            cond = replace(cond, t_end=self.time.arriving(cond.t_end, self.schedule).to(wide))
        with precision:
            out: Tensor = self.net(x_t.to(dtype), time, cond)
        return out

    def _check_output(self, out: object, x_t: Tensor) -> None:
        """`ConfigError` for an output of another shape, which torch would broadcast or cut."""
        reads = self.parameterisation.outputs
        expected = [len(x_t), *(reads * channels for channels in x_t.shape[1:2]), *x_t.shape[2:]]
        actual = list(out.shape) if isinstance(out, Tensor) else f"a {type(out).__name__}"
        if actual != expected:
            raise ConfigError(
                f"the network answers {actual} for samples of {list(x_t.shape)}, and the "
                f"parameterisation reads {expected}: give another of the two, or a network that returns a "
                "tensor of that shape"
            )

    @property
    def unguided(self) -> "Denoiser":
        """The denoiser without guidance: itself."""
        return self

    @property
    def guided(self) -> bool:
        """Whether guidance changes the predictions: never."""
        return False

    def trainable_copy(self) -> "Denoiser":
        """A trainable copy; parameters that are `not_trained` stay so in it.

        Raises:
            ConfigError: the network is int8.
        """
        if getattr(self.net, "quantised", None):
            raise ConfigError("this network is int8 and cannot be trained: give its float original")
        if (dtype := getattr(self.net, "stored_dtype", None)) is not None:
            raise ConfigError(
                f"this network's weights are rounded to {dtype} and cannot be trained: load it again without "
                "dtype, or train a LoRA (command line: --lora-rank)"
            )
        student = copy.deepcopy(self).train()
        thaw(student.net)
        return student

    def freeze(self) -> "Denoiser":
        """Switch to evaluation mode and turn gradients off, in place; returns itself."""
        self.net._frozen_before = not_trained(self.net)  # type: ignore[assignment]  # no module: names
        return self.eval().requires_grad_(False)

    def compile(self, *args: Any, **options: Any) -> None:
        """Compile the network alone with `torch.compile`, in place: levels are cheap, and change.

        Args:
            args: as of `torch.compile`.
            options: as of `torch.compile`.
        """
        self.net.compile(*args, **options)


def not_trained(net: nn.Module) -> frozenset[str]:
    """The names of the parameters that training leaves unchanged: those with requires_grad=False.

    For a network frozen by `Denoiser.freeze`, those that had it before.
    """
    names = frozenset(name for name, p in net.named_parameters() if not p.requires_grad)
    if any(p.requires_grad for p in net.parameters()):
        return names
    before: frozenset[str] = getattr(net, "_frozen_before", names)
    return before


def freeze_alike(
    net: nn.Module, old: nn.Module, old_name: Callable[[str], str | None] = lambda name: name
) -> None:
    """Freeze the parameters of a copy that are frozen in the old network.

    old_name  what a parameter of the copy is called in the old one; what has no equal there is left alone
    """
    old_parameters, frozen = dict(old.named_parameters()), not_trained(old)
    for name, parameter in net.named_parameters():
        if (before := old_name(name)) in old_parameters:
            parameter.requires_grad_(before not in frozen)


def thaw(net: nn.Module) -> None:
    """Undo `Denoiser.freeze`: gradients for all parameters except those without gradients before."""
    before = not_trained(net)
    for name, parameter in net.named_parameters():
        if parameter.is_floating_point() or parameter.is_complex():
            parameter.requires_grad_(name not in before)
    if hasattr(net, "_frozen_before"):
        del net._frozen_before
