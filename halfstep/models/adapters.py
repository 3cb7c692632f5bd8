"""Adapters of networks with other signatures to halfstep's call, net(x, t, cond).

Any module called as net(x, t, cond) is a network of halfstep; a module with another signature needs three
lines:

    class Mine(Adapter):
        def forward(self, x, t, cond=None):
            return self.model(x, t, self.label(cond))
"""

from typing import Any, cast

from torch import nn, Tensor

from halfstep.batch import Cond
from halfstep.errors import ConfigError
from halfstep.models.diffusers_config import refuse_other_outputs
from halfstep.models.end_time_embedding import NO_END
from halfstep.models.guidance_embedding import check_scales, NO_SCALE
from halfstep.models.head_bank import NO_HEADS

NO_TEXT = "this network reads text states: give cond=Cond(encoder_hidden_states=...)"


class Adapter(nn.Module):
    """Wraps a network as `model`; its weights have the prefix `model.`.

    num_classes  rows of the network's label embedding, or None if it takes no labels
    reads        the conditions it reads; any other is refused, because it would change nothing
    """

    reads: tuple[str, ...] = ("label",)
    outputs: int | None = None
    """Outputs per channel of x in the config of a diffusers network; 0 if the config does not say."""

    def __init__(self, model: nn.Module, num_classes: int | None = None):
        super().__init__()
        self.model, self.num_classes = model, num_classes

    def refuse_outputs(self, reads: int) -> None:
        """`ConfigError` unless the network puts out `reads` channels per channel of x."""
        if self.outputs is None:
            return
        config = cast(Any, self.model).config
        channels = int(config["in_channels"])
        refuse_other_outputs(reads, channels, int(config["out_channels"]), self.outputs)

    def scale(self, cond: Cond | None, x: Tensor) -> Tensor | None:
        """The guidance scales for the network; `ConfigError` if they are missing or not read."""
        self._refuse_unread(cond)
        scale = None if cond is None else cond.guidance_scale
        if scale is None and "guidance_scale" in self.reads:
            raise ConfigError(NO_SCALE)
        check_scales(scale, x)
        return scale

    def heads(self, cond: Cond | None) -> Tensor | None:
        """The weights of the network's heads; `ConfigError` if they are missing or not read."""
        self._refuse_unread(cond)
        heads = None if cond is None else cond.heads
        if heads is None and "heads" in self.reads:
            raise ConfigError(NO_HEADS)
        return heads

    def end_time(self, cond: Cond | None) -> Tensor | None:
        """The times where steps end, as the network reads times; `ConfigError` if they are missing."""
        end = None if cond is None else cond.t_end
        if end is None and "t_end" in self.reads:
            raise ConfigError(NO_END)
        return end

    def label(self, cond: Cond | None) -> Tensor | None:
        """The labels for the network; `ConfigError` if they are missing or not read."""
        self._refuse_unread(cond)
        label = None if cond is None else cond.label
        if label is None and self.num_classes is not None:
            raise ConfigError(
                f"this network has {self.num_classes} classes and got no labels: give "
                "cond=Cond(label=...), or build it without num_classes"
            )
        if label is not None and self.num_classes is None:
            raise ConfigError(
                "this network takes no labels and got some: leave them out of cond, or build it "
                "with num_classes"
            )
        return label

    def _refuse_unread(self, cond: Cond | None) -> None:
        for name in {} if cond is None else cond.named():
            if name != "label" and name not in self.reads:
                raise ConfigError(
                    f"this network reads no {name}: give cond without it, or a network whose `reads` names it"
                )


class UViTNet(Adapter):
    """Adapter of `halfstep.models.uvit.model.UViT`, which reads labels or text states."""

    def __init__(self, model: nn.Module, num_classes: int | None = None):
        super().__init__(model, num_classes)
        parts = {
            "encoder_hidden_states": model.context_embed,
            "guidance_scale": model.guidance_embed,
            "heads": model.output_heads or None,
            "t_end": model.t_end_embed,
        }
        self.reads = "label", *(name for name, part in parts.items() if part is not None)

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        label, states = self.label(cond), None if cond is None else cond.encoder_hidden_states
        if "encoder_hidden_states" in self.reads and states is None:
            raise ConfigError(NO_TEXT)
        scale, heads = self.scale(cond, x), self.heads(cond)
        out: Tensor = self.model(x, t, label, states, scale, heads, self.end_time(cond))
        return out
