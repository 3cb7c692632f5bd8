"""The optimisers: AdamW, or Muon for the matrices of linear layers and AdamW for everything else."""

from collections.abc import Mapping

import torch
from torch import nn, Tensor
from torch.optim import AdamW, Muon

from halfstep.config import JsonObject
from halfstep.errors import ConfigError
from halfstep.training.config import TrainingConfig


class Optimiser:
    """AdamW, or AdamW and Muon (Jordan 2024) as one optimiser.

    Muon's steps are orthogonal matrices, scaled to the root mean square of AdamW's (Liu et al. 2025), so
    that both have the same learning rate and weight decay.
    """

    def __init__(self, module: nn.Module, settings: TrainingConfig, *, fused: bool):
        trained = [p for p in module.parameters() if p.requires_grad]
        turned = _matrices(module) if settings.optimiser == "muon" else []
        if settings.optimiser == "muon" and not turned:
            raise ConfigError(
                "optimiser 'muon' turns the matrices of linear layers, and this network has none: "
                "write adamw"
            )
        matrices = {id(p) for p in turned}
        others = [p for p in trained if id(p) not in matrices]
        self._parts: list[torch.optim.Optimizer] = []
        rate, decay = settings.learning_rate, settings.weight_decay
        if others:
            adamw = AdamW(others, rate, settings.betas, weight_decay=decay, fused=fused)
            self._parts.append(adamw)
        if turned:
            muon = Muon(turned, rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
            self._parts.append(muon)

    @property
    def param_groups(self) -> list[JsonObject]:
        """All parameter groups, as torch's GradScaler reads them."""
        return [group for part in self._parts for group in part.param_groups]

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
            part.step()

    def zero_grad(self) -> None:
        for part in self._parts:
            part.zero_grad()


def _matrices(module: nn.Module) -> list[nn.Parameter]:
    """The weights of linear layers: nearly all of a transformer, and the attention of a U-Net."""
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    weights = {id(layer.weight): layer.weight for layer in layers if layer.weight.requires_grad}
    return [weight for weight in weights.values() if isinstance(weight, nn.Parameter)]
