"""The time where a step ends as an input of a network: its embedding, like that of the time itself.

Frans et al., "One Step Diffusion via Shortcut Models", 2024, and Boffi et al., "Flow map matching", 2024,
tell a network where its step goes.
"""

from torch import nn, Tensor

from halfstep.config.validate import is_valid
from halfstep.errors import ConfigError
from halfstep.models.time_embedding import sinusoid

NO_END = (
    "this network is told where its step ends: give cond=Cond(t_end=...), or sampler='flow-map'"
)


class EndTimeEmbedding(nn.Module):
    """Maps times [B], as the network reads them, to [B, width].  Its last layer starts at zero.

    factor  what the network multiplies its times by before their sinusoids
    """

    def __init__(self, features: int, width: int, *, factor: float = 1.0):
        super().__init__()
        check_end_features(features)
        self.features, self.factor = features, factor
        self.enter, self.leave = nn.Linear(features, width), nn.Linear(width, width)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, t_end: Tensor | None) -> Tensor:
        if t_end is None:
            raise ConfigError(NO_END)
        waves = sinusoid(self.factor * t_end, self.features).to(self.enter.weight.dtype)
        out: Tensor = self.leave(nn.functional.silu(self.enter(waves)))
        return out


def is_told_end(net: nn.Module) -> bool:
    """Whether a network is told where its step ends."""
    return "t_end" in getattr(net, "reads", ())


def check_end_features(features: int) -> None:
    """`ConfigError` for an invalid number of features."""
    if not is_valid(features, int) or not 4 <= features <= 2**16 or features % 2:
        raise ConfigError(
            "t_end_embed_dim is the number of features of the time where a step ends, a sine and a cosine "
            f"each, got {features}: write an even number from 4, for example 256"
        )
