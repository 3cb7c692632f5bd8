"""The optimisers: AdamW, or Muon for the matrices of linear layers and AdamW for everything else."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn, Tensor
from torch.optim import AdamW, Muon

from halfstep.errors import ConfigError
from halfstep.training.config import TrainingConfig


class Optimiser:
    """AdamW, alone or with Muon (Jordan 2024) beside it, as one.

    Muon's steps are orthogonal matrices, scaled to the root mean square of AdamW's (Liu et al. 2025),
    so that one rate and one weight decay serve both.
    """

    def __init__(self, module: nn.Module, settings: TrainingConfig, *, fused: bool):
        trained = [p for p in module.parameters() if p.requires_grad]
        turned = _matrices(module) if settings.optimiser == "muon" else []
        if settings.optimiser == "muon" and not turned:
            raise ConfigError(
                "optimiser 'muon' turns the matrices of linear layers, and this network has none: "
                "write adamw"
            )
        chosen = {id(p) for p in turned}
        rest = [p for p in trained if id(p) not in chosen]
        self._parts: list[torch.optim.Optimizer] = []
        decay = settings.weight_decay
        if rest:
            adamw = AdamW(
                rest, settings.learning_rate, settings.betas, weight_decay=decay, fused=fused
            )
            self._parts.append(adamw)
        if turned:
            muon = Muon(
                turned, settings.learning_rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"
            )
            self._parts.append(muon)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """As torch's GradScaler reads them."""
        return [group for part in self._parts for group in part.param_groups]

    @property
    def state(self) -> dict[Tensor, dict[str, Tensor]]:
        """What is known of each parameter: AdamW's step and two moments, Muon's momentum."""
        # Not looked up in one after the other: a part's state makes an entry of what it is asked for.
        return {p: moments for part in self._parts for p, moments in part.state.items()}

    def load(self, state: Mapping[nn.Parameter, dict[str, Tensor]]) -> None:
        """Take up what `state` gave, by parameter."""
        for part in self._parts:
            own = [p for group in part.param_groups for p in group["params"]]
            known = {k: state[p] for k, p in enumerate(own) if p in state}
            groups = part.state_dict()["param_groups"]
            part.load_state_dict({"state": known, "param_groups": groups})

    def step(self) -> None:
        for part in self._parts:
            part.step()

    def zero_grad(self) -> None:
        for part in self._parts:
            part.zero_grad()


def _matrices(module: nn.Module) -> list[nn.Parameter]:
    """The weights of linear layers: of a transformer nearly all there is, of a U-Net its attention."""
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    found = {id(layer.weight): layer.weight for layer in layers if layer.weight.requires_grad}
    return [weight for weight in found.values() if isinstance(weight, nn.Parameter)]
