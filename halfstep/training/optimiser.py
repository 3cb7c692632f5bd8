"""The optimisers: AdamW, also with moments in 8 bits, or Muon for the matrices of linear layers."""

from collections.abc import Mapping, Sequence
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


class Optimiser:
    """AdamW, AdamW in 8 bits (Dettmers et al. 2022), or AdamW and Muon (Jordan 2024) as one optimiser.

    Muon's steps are orthogonal matrices, scaled to the root mean square of AdamW's (Liu et al. 2025), so
    that both have the same learning rate and weight decay.
    """

    def __init__(self, module: nn.Module, settings: TrainingConfig, *, fused: bool):
        trained = [p for p in module.parameters() if p.requires_grad]
        check_optimiser(module, settings)
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
        if turned:
            muon = Muon(turned, rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
            self._parts.append(muon)

    @property
    def param_groups(self) -> list[JsonObject]:
        """All parameter groups, as torch's GradScaler reads them."""
        return [group for part in self._parts for group in part.param_groups]

    def set_rate(self, rate: float) -> None:
        """Set the learning rate of the next step."""
        for group in self.param_groups:
            if isinstance(group["lr"], Tensor):  # torchao's, which a compiled step reads
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    @property
    def state(self) -> dict[Tensor, dict[str, Tensor]]:
        """State of each parameter: AdamW's step and two moments, Muon's momentum."""
        # Not by key: reading a missing key of an optimiser's state would add it.
        return {p: moments for part in self._parts for p, moments in part.state.items()}

    def load(self, state: Mapping[nn.Parameter, dict[str, Tensor]]) -> None:
        """Restore the state by parameter, as `state` returns it."""
        for part in self._parts:
            parameters = [p for group in part.param_groups for p in group["params"]]
            by_index = {k: state[p] for k, p in enumerate(parameters) if p in state}
            groups = part.state_dict()["param_groups"]
            part.load_state_dict({"state": by_index, "param_groups": groups})

    def step(self) -> None:
        for part in self._parts:
            # torchao compiles its step; on a CPU that takes a minute, and gains less.
            in_8_bits = type(part).__name__ == "AdamW8bit"
            on_cpu = in_8_bits and part.param_groups[0]["params"][0].device.type == "cpu"
            with torch.compiler.set_stance("force_eager") if on_cpu else nullcontext():
                part.step()

    def zero_grad(self) -> None:
        for part in self._parts:
            part.zero_grad()


def check_optimiser(module: nn.Module, settings: TrainingConfig) -> None:
    """`ConfigError` for an optimiser that this network has nothing for, or whose package is missing."""
    if settings.optimiser == "muon" and not matrices(module):
        raise ConfigError(
            "optimiser 'muon' turns the matrices of linear layers, and this network has none: "
            "write adamw"
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
    """The weights of linear layers: nearly all of a transformer, and the attention of a U-Net."""
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    weights = {id(layer.weight): layer.weight for layer in layers if layer.weight.requires_grad}
    return [weight for weight in weights.values() if isinstance(weight, nn.Parameter)]
