"""Adapters of networks with other signatures to halfstep's call, net(x, t, cond).

Any module called as net(x, t, cond) is a network of halfstep; a module with another signature needs three
lines:

    class Mine(Adapter):
        def forward(self, x, t, cond=None):
            return self.model(x, t, self.label(cond))
"""

from collections.abc import Iterable
from dataclasses import fields
from inspect import signature
from typing import Any, cast

import torch
from torch import nn, Tensor

from halfstep.batch import Cond
from halfstep.config import JsonObject
from halfstep.errors import ConfigError, unknown
from halfstep.models.diffusers_config import (
    LABELS,
    OURS,
    refuse_other_conditions,
    refuse_other_outputs,
)
from halfstep.models.guidance_embedding import (
    adding,
    check_features,
    check_scales,
    guidance_features,
    GuidanceEmbedding,
    NO_SCALE,
)
from halfstep.quiet import quietly

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
        conditions = {} if cond is None else {f.name: getattr(cond, f.name) for f in fields(cond)}
        for name, value in conditions.items():
            if name != "label" and isinstance(value, Tensor) and name not in self.reads:
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
        }
        self.reads = "label", *(name for name, part in parts.items() if part is not None)

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        label, states = self.label(cond), None if cond is None else cond.encoder_hidden_states
        if "encoder_hidden_states" in self.reads and states is None:
            raise ConfigError(NO_TEXT)
        out: Tensor = self.model(x, t, label, states, self.scale(cond, x))
        return out


class TimeAdapter(Adapter):
    """Adapter that adds the guidance scale to the time embedding of a network without such an input.

    width     of the time embedding
    guidance_embed_dim  number of features of the scale, 0 if it takes none
    """

    def __init__(
        self,
        model: nn.Module,
        num_classes: int | None = None,
        *,
        width: int = 0,
        guidance_embed_dim: int = 0,
    ):
        super().__init__(model, num_classes)
        self.guidance = GuidanceEmbedding(guidance_embed_dim, width) if guidance_embed_dim else None
        self.reads = ("label", "guidance_scale") if guidance_embed_dim else ("label",)

    def added(self, cond: Cond | None, x: Tensor) -> Tensor | None:
        """The embedding of the guidance scale, to add to the time embedding; None if it is not read."""
        scale = self.scale(cond, x)
        return None if self.guidance is None else self.guidance(scale)


class UNetNet(TimeAdapter):
    """Adapter of diffusers' `UNet2DModel`."""

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        label = self.label(cond)
        with adding(self.added(cond, x), [self.model.time_embedding]):  # type: ignore[list-item]
            out: Tensor = self.model(x, t, label, return_dict=False)[0]
        return out


class DiTNet(TimeAdapter):
    """Adapter of diffusers' `DiTTransformer2DModel`, which always takes a label: 0 without classes.

    diffusers' DiT drops a tenth of the labels in training; that is switched off, because the method drops
    labels.
    """

    def __init__(self, model: nn.Module, num_classes: int | None = None, **guidance: int):
        super().__init__(model, num_classes, **guidance)
        for module in model.modules():
            if hasattr(module, "embedding_table"):  # its LabelEmbedding
                module.dropout_prob = 0.0  # type: ignore[assignment]

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        label = self.label(cond)
        if label is None:
            label = torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)
        added, model = self.added(cond, x), cast(Any, self.model)
        if added is not None and model.gradient_checkpointing:  # the recomputation would lack it
            raise ConfigError(
                "diffusers' DiT has no input for the guidance scale that gradient checkpointing would "
                "keep: leave checkpointing off, or use a U-ViT"
            )
        # Every block has a time embedding.
        with adding(added, [block.norm1.emb for block in model.transformer_blocks]):
            out: Tensor = model(x, t, label, return_dict=False)[0]
        return out


class UNetConditionNet(Adapter):
    """Adapter of diffusers' `UNet2DConditionModel`, which reads text states, and labels if it has classes.

    Its input `timestep_cond` takes the features of the guidance scale.
    """

    def __init__(
        self, model: nn.Module, num_classes: int | None = None, *, guidance_embed_dim: int = 0
    ):
        super().__init__(model, num_classes)
        self.guidance_embed_dim, self.reads = guidance_embed_dim, ("label", "encoder_hidden_states")
        if guidance_embed_dim:
            self.reads = *self.reads, "guidance_scale"
            nn.init.zeros_(cast(Any, model).time_embedding.cond_proj.weight)

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        label = self.label(cond)
        if cond is None or cond.encoder_hidden_states is None:
            raise ConfigError(NO_TEXT)
        self._refuse_other_width(cond.encoder_hidden_states)
        scale, features = self.scale(cond, x), None
        if scale is not None:
            features = guidance_features(scale - 1, self.guidance_embed_dim).to(x.dtype)
        out: Tensor = self.model(
            x,
            t,
            cond.encoder_hidden_states,
            class_labels=label,
            timestep_cond=features,
            return_dict=False,
        )[0]
        return out

    def _refuse_other_width(self, encoder_hidden_states: Tensor) -> None:
        config = cast(Any, self.model).config
        width = config["encoder_hid_dim"] or config["cross_attention_dim"]
        if isinstance(width, int) and (
            encoder_hidden_states.ndim != 3 or encoder_hidden_states.shape[2] != width
        ):
            raise ConfigError(
                f"this network reads text states [B, tokens, {width}], got "
                f"{list(encoder_hidden_states.shape)}: give the states of the encoder that it was trained "
                "with"
            )


def unet(
    *, num_classes: int | None = None, guidance_embed_dim: int = 0, outputs: int = 0, **config: Any
) -> UNetNet:
    """Build a `UNet2DModel` from these arguments.

    outputs  channels out per channel of x: 2 for `X0AndEps`; 0: out_channels, or in_channels
    """
    with quietly():
        from diffusers.models.unets.unet_2d import UNet2DModel

    model = _diffusers("unet", UNet2DModel, config, num_classes, outputs)
    width = cast(Any, model).time_embedding.linear_2.out_features
    net = UNetNet(model, num_classes, width=width, guidance_embed_dim=guidance_embed_dim)
    net.outputs = outputs
    return net


def unet_condition(
    *, num_classes: int | None = None, guidance_embed_dim: int = 0, outputs: int = 0, **config: Any
) -> UNetConditionNet:
    """Build a `UNet2DConditionModel` from these arguments; `outputs` is as in `unet`."""
    with quietly():
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    if guidance_embed_dim:
        check_features(guidance_embed_dim)
        config["time_cond_proj_dim"] = guidance_embed_dim
    model = _diffusers("unet-condition", UNet2DConditionModel, config, num_classes, outputs)
    net = UNetConditionNet(model, num_classes, guidance_embed_dim=guidance_embed_dim)
    net.outputs = outputs
    return net


def dit(
    *, num_classes: int | None = None, guidance_embed_dim: int = 0, outputs: int = 0, **config: Any
) -> DiTNet:
    """Build a `DiTTransformer2DModel` from these arguments; `outputs` is as in `unet`."""
    with quietly():
        from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel

    model = _diffusers("dit", DiTTransformer2DModel, config, num_classes, outputs)
    width = cast(Any, model).inner_dim
    net = DiTNet(model, num_classes, width=width, guidance_embed_dim=guidance_embed_dim)
    net.outputs = outputs
    return net


def _diffusers(
    name: str, model: Any, config: JsonObject, num_classes: int | None, outputs: int
) -> nn.Module:
    """Build a diffusers model from a config with halfstep's num_classes in place of its own option."""
    known = signature(model.__init__).parameters
    refuse_unknown(name, config, {*known, *OURS} - {"self", LABELS[name]})
    refuse_other_conditions(name, {**config, "num_classes": num_classes})
    channels = config.get("in_channels", known["in_channels"].default)
    out = outputs * channels or channels
    if outputs and config.get("out_channels", out) != out:
        raise ConfigError(
            f"outputs={outputs} of {channels} channels are {out}, and out_channels is "
            f"{config['out_channels']}: leave one of them out"
        )
    # diffusers' table of a DiT has one row more than num_embeds_ada_norm, for the null class.
    rows = (num_classes or 1) - 1 if name == "dit" else num_classes
    net: nn.Module = model(**{"out_channels": out, **config, LABELS[name]: rows})
    return net


def refuse_unknown(name: str, config: Iterable[str], known: Iterable[str]) -> None:
    """`ConfigError` for a config with keys that the named net does not have."""
    for key in config:
        if key not in (names := set(known)):
            raise unknown(f"option of the net '{name}' called", key, names)
