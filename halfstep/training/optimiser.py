"""The optimisers: AdamW, also with moments in 8 bits, or Muon for the matrices of hidden layers."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from importlib.util import find_spec

import torch
from torch import nn, Tensor
from torch.optim import AdamW, Muon

from halfstep.config import JsonObject
from halfstep.errors import ConfigError
from halfstep.quiet import quietly
from halfstep.training.config import TrainingConfig

EIGHT_BITS = 4096
"""Values from which torchao stores the moments of a parameter in 8 bits, if they are whole blocks."""
BLOCK = 256
"""Values that share a scale."""
HIDDEN = 16
"""Channels in and out from which Muon turns the kernels of a convolution.  The first and the last one, from
and to the channels of the images, have fewer, and are AdamW's, as Jordan advises."""


class Optimiser:
    """AdamW, AdamW in 8 bits (Dettmers et al. 2022), or AdamW and Muon (Jordan 2024) as one optimiser.

    Muon's steps are orthogonal matrices, scaled to the root mean square of AdamW's (Liu et al. 2025), so
    that both have the same learning rate and weight decay.  The kernels of a convolution are a matrix of a
    row for each channel out.
    """

    def __init__(self, module: nn.Module, settings: TrainingConfig, *, fused: bool):
        trained = [p for p in module.parameters() if p.requires_grad]
        check_optimiser(module, settings)
        self._trained = trained
        turned = matrices(module) if settings.optimiser == "muon" else []
        in_muon = {id(p) for p in turned}
        others = [p for p in trained if id(p) not in in_muon]
        self._parts: list[torch.optim.Optimizer] = []
        rate, decay = settings.learning_rate, settings.weight_decay
        if others:
            if settings.optimiser == "adamw-8bit":
                adamw = _in_8_bits(others, settings)
            else:
                adamw = AdamW(others, rate, settings.betas, weight_decay=decay, fused=fused)
            self._parts.append(adamw)
        self._turned = {p: p if p.ndim == 2 else nn.Parameter(_as_matrix(p)) for p in turned}
        if turned:
            muon = Muon(
                self._turned.values(), rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"
            )
            self._parts.append(muon)

    @property
    def param_groups(self) -> list[JsonObject]:
        """All parameter groups, as torch's GradScaler reads them."""
        own = {matrix: p for p, matrix in self._turned.items()}
        return [
            {**group, "params": [own.get(p, p) for p in group["params"]]}
            for part in self._parts
            for group in part.param_groups
        ]

    def set_rate(self, rate: float) -> None:
        """Set the learning rate of the next step."""
        for group in (group for part in self._parts for group in part.param_groups):
            if isinstance(group["lr"], Tensor):  # torchao's, which a compiled step reads
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    @property
    def state(self) -> dict[Tensor, dict[str, Tensor]]:
        """State of each parameter: AdamW's step and two moments, Muon's momentum."""
        # Not by key: reading a missing key of an optimiser's state would add it.
        state = {p: moments for part in self._parts for p, moments in part.state.items()}
        for p, matrix in self._kernels():
            if matrix in state:
                state[p] = {k: moment.view_as(p) for k, moment in state.pop(matrix).items()}
        return state

    def load(self, state: Mapping[nn.Parameter, dict[str, Tensor]]) -> None:
        """Restore the state by parameter, as `state` returns it."""
        state = dict(state)
        for p, matrix in self._kernels():
            if p in state:
                state[matrix] = {k: _as_matrix(moment) for k, moment in state.pop(p).items()}
        for part in self._parts:
            parameters = [p for group in part.param_groups for p in group["params"]]
            by_index = {k: state[p] for k, p in enumerate(parameters) if p in state}
            groups = part.state_dict()["param_groups"]
            part.load_state_dict({"state": by_index, "param_groups": groups})

    def step(self) -> None:
        for p, matrix in self._kernels():
            matrix.data = _as_matrix(p)
            matrix.grad = None if p.grad is None else _as_matrix(p.grad)
        for part in self._parts:
            # torchao compiles its step; on a CPU that takes a minute, and gains less.
            in_8_bits = type(part).__name__ == "AdamW8bit"
            on_cpu = in_8_bits and part.param_groups[0]["params"][0].device.type == "cpu"
            with torch.compiler.set_stance("force_eager") if on_cpu else nullcontext():
                part.step()
        for p, matrix in self._kernels():
            if matrix.data_ptr() != p.data_ptr():  # channels last: the matrix is a copy
                p.detach().copy_(matrix.detach().view_as(p))

    def zero_grad(self) -> None:
        for p in (*self._trained, *self._turned.values()):
            p.grad = None

    def _kernels(self) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
        """The kernels of convolutions, and the matrices that Muon turns in their place."""
        return ((p, matrix) for p, matrix in self._turned.items() if matrix is not p)


def _as_matrix(kernels: Tensor) -> Tensor:
    """Kernels [out, in, ...] as [out, in * ...]: the same memory, unless they are channels last."""
    return kernels.detach().flatten(1)


def check_optimiser(module: nn.Module, settings: TrainingConfig) -> None:
    """`ConfigError` for an optimiser that this network has nothing for, or whose package is missing."""
    if settings.optimiser == "muon" and not matrices(module):
        raise ConfigError(
            "optimiser 'muon' turns the matrices of linear layers and of convolutions between hidden layers, "
            "and this network has none: write adamw"
        )
    if settings.optimiser == "adamw-8bit" and find_spec("torchao") is None:
        raise ConfigError(
            "optimiser 'adamw-8bit' needs the package torchao, which is not installed: pip install "
            "'halfstep[int8]', or write adamw"
        )
    trained = [p for p in module.parameters() if p.requires_grad]
    if settings.optimiser == "adamw-8bit" and not any(map(has_8_bits, trained)):
        raise ConfigError(
            f"optimiser 'adamw-8bit' stores moments of {EIGHT_BITS:,} values and more in 8 bits, and no "
            "parameter of this network is so large: write adamw"
        )


def _in_8_bits(
    parameters: Sequence[nn.Parameter], settings: TrainingConfig
) -> torch.optim.Optimizer:
    """torchao's AdamW with moments in 8 bits."""
    with quietly():
        from torchao.optim import AdamW8bit

    rate, decay = settings.learning_rate, settings.weight_decay
    return AdamW8bit(  # type: ignore[no-any-return]
        parameters, rate, settings.betas, weight_decay=decay, block_size=BLOCK
    )


def has_8_bits(parameter: Tensor) -> bool:
    """Whether the moments of this parameter are stored in 8 bits by `adamw-8bit`."""
    return parameter.numel() >= EIGHT_BITS and parameter.numel() % BLOCK == 0


def moment_of(codes: Tensor, scale: Tensor, parameter: Tensor, *, signed: bool) -> Tensor:
    """A moment in 8 bits from its codes, uint8, and the scale of each block; copies."""
    with quietly():
        from torchao.optim.subclass_8bit import OptimState8bit

    device, dtype = parameter.device, parameter.dtype
    moment = OptimState8bit.zeros(codes.shape, signed, BLOCK, device, dtype=dtype)
    moment.codes.copy_(codes)
    moment.scale.copy_(scale)
    return moment  # type: ignore[no-any-return]


def matrices(module: nn.Module) -> list[nn.Parameter]:
    """The weights that Muon turns: of linear layers, and of convolutions between hidden layers."""
    weights = {
        id(layer.weight): layer.weight
        for layer in module.modules()
        if isinstance(layer, nn.Linear) or _is_hidden(layer)
    }
    return [
        weight
        for weight in weights.values()
        if weight.requires_grad and isinstance(weight, nn.Parameter)
    ]


def _is_hidden(layer: nn.Module) -> bool:
    """Whether it is a convolution of many channels, in and out."""
    if not isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d) or layer.groups > 1:
        return False
    return min(layer.in_channels, layer.out_channels) >= HIDDEN
