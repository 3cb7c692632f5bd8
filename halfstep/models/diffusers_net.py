"""One adapter for the networks of diffusers: what their forwards take is data, `NetworkInputs`."""

from collections.abc import Iterator
from fnmatch import fnmatchcase
from inspect import signature
from typing import Any, cast

import torch
from torch import nn, Tensor

from halfstep.batch import Cond
from halfstep.config import JsonObject
from halfstep.errors import ConfigError
from halfstep.models.adapters import Adapter, NO_TEXT
from halfstep.models.diffusers_config import LABELS, OURS, refuse_other_conditions
from halfstep.models.end_time_embedding import EndTimeEmbedding
from halfstep.models.guidance_embedding import (
    adding,
    check_features,
    guidance_features,
    GuidanceEmbedding,
)
from halfstep.models.head_bank import weighing, widen
from halfstep.models.limits import refuse_unknown
from halfstep.models.network_inputs import inputs_of, NetworkInputs, width_of
from halfstep.quiet import quietly


class DiffusersNet(Adapter):
    """A network of diffusers, called as `NetworkInputs` says.

    learned_sigma  the network puts out variances behind its prediction, which are cut off
    guidance_embed_dim  number of features of the guidance scale that halfstep adds; 0 for none
    output_heads   copies of its last layer, whose weights in the output are `Cond.heads`; 0: one, without
    t_end_embed_dim  number of features of the time where a step ends, which halfstep adds; 0 for none

    A network with classes always gets a label: a DiT without classes gets 0.  diffusers' DiT drops a tenth of
    the labels in training; that is switched off, because the method drops labels.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: NetworkInputs,
        num_classes: int | None = None,
        *,
        guidance_embed_dim: int = 0,
        output_heads: int = 0,
        t_end_embed_dim: int = 0,
        learned_sigma: bool = False,
    ):
        super().__init__(model, num_classes)
        self.inputs, self.learned_sigma = inputs, learned_sigma
        self.guidance_embed_dim = guidance_embed_dim
        self.takes_scale = bool(inputs.scale and self._config.get("guidance_embeds"))
        self.guidance: GuidanceEmbedding | None = None
        if guidance_embed_dim and not inputs.scale_features:
            width = _width(next(self.time_embeddings()))
            self.guidance = GuidanceEmbedding(guidance_embed_dim, width)
        self.end: EndTimeEmbedding | None = None
        if t_end_embed_dim:
            width, factor = _width(next(self.time_embeddings())), inputs.time_factor
            self.end = EndTimeEmbedding(t_end_embed_dim, width, factor=factor)
        self.output_heads = output_heads
        if output_heads:
            widen(model, inputs.last_layer, output_heads)
        reads = {
            "guidance_scale": self.takes_scale or guidance_embed_dim,
            "heads": output_heads,
            "t_end": t_end_embed_dim,
        }
        self.reads = (
            "label",
            *inputs.conditions,
            *(name for name, is_read in reads.items() if is_read),
        )
        for module in model.modules():
            if hasattr(module, "embedding_table"):  # a DiT's LabelEmbedding
                module.dropout_prob = 0.0  # type: ignore[assignment]

    @property
    def _config(self) -> Any:
        return cast(Any, self.model).config

    def time_embeddings(self) -> Iterator[nn.Module]:
        """The modules that embed the time."""
        for name, module in self.model.named_modules():
            if any(fnmatchcase(name, pattern) for pattern in self.inputs.time_embedding):
                yield module

    def refuse_outputs(self, reads: int) -> None:
        """`ConfigError` unless the network puts out `reads` channels per channel of x."""
        out, channels = self._config.get("out_channels"), self._config.get("in_channels")
        if self.learned_sigma and reads == 1 and out == 2 * channels:
            return
        if not self.inputs.packed and out is not None:
            super().refuse_outputs(reads)

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        inputs, arguments = self.inputs, dict[str, Any](return_dict=False)
        label, scale = self.label(cond), self.scale(cond, x)
        if label is None and self._always_labelled():
            label = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        if label is not None:
            arguments[inputs.label] = label
        self._add_conditions(arguments, cond, x.dtype)
        self._add_positions(arguments, x)
        arguments[inputs.sample] = pack(x, inputs.packed) if inputs.packed else x
        arguments[inputs.timestep] = t
        if self._checkpoints():
            self.refuse_checkpointing()
        embedded = self._embedded_scale(arguments, scale, x)
        if self.end is not None:
            end = self._embedded_end(cond)
            embedded = end if embedded is None else embedded + end
        added = adding(embedded, list(self.time_embeddings()))
        with added, weighing(self._bank(), self.heads(cond)):
            out: Tensor = self.model(**arguments)[0]
        if inputs.packed:
            out = unpack(out, inputs.packed, x.shape[-2:])
        return out[:, : x.shape[1]] if self.learned_sigma else out

    def _bank(self) -> nn.Module | None:
        return self.model.get_submodule(self.inputs.last_layer) if self.output_heads else None

    def _checkpoints(self) -> bool:
        return bool(getattr(self.model, "gradient_checkpointing", False))

    def refuse_checkpointing(self) -> None:
        """`ConfigError` where halfstep adds a scale or a time in blocks: a recomputation would lack it."""
        added = [self.guidance and "the guidance scale", self.end and "the time where a step ends"]
        if any(added) and any("*" in name for name in self.inputs.time_embedding):
            raise ConfigError(
                f"diffusers' {type(self.model).__name__} has no input for {next(filter(None, added))} that "
                "gradient checkpointing would keep: leave checkpointing off, or use a U-ViT"
            )

    def _always_labelled(self) -> bool:
        return type(self.model).__name__ == "DiTTransformer2DModel"

    def _add_conditions(
        self, arguments: dict[str, Any], cond: Cond | None, dtype: torch.dtype
    ) -> None:
        named = {} if cond is None else cond.named()
        tensors = {k: v.to(dtype) if v.is_floating_point() else v for k, v in named.items()}
        for name, argument in self.inputs.conditions.items():
            if name not in tensors:
                if name in self.inputs.optional:
                    continue
                states = name == "encoder_hidden_states"
                raise ConfigError(
                    NO_TEXT
                    if states
                    else f"this network reads {name}: give cond=Cond(added={{'{name}': ...}})"
                )
            self._refuse_other_width(name, tensors[name])
            outer, _, inner = argument.partition(".")
            if inner:
                arguments.setdefault(outer, {})[inner] = tensors[name]
            else:
                arguments[outer] = tensors[name]

    def _refuse_other_width(self, name: str, value: Tensor) -> None:
        width = width_of(self.inputs, name, self._config)
        states = name == "encoder_hidden_states"
        if width is None or (value.ndim == (3 if states else 2) and value.shape[-1] == width):
            return
        shape = f"[B, tokens, {width}]" if states else f"[B, {width}]"
        raise ConfigError(
            f"this network reads {'text states' if states else name} {shape}, got {list(value.shape)}: give "
            "what the encoder returns that it was trained with"
        )

    def _add_positions(self, arguments: dict[str, Any], x: Tensor) -> None:
        inputs, side = self.inputs, self.inputs.packed or 1
        rows, columns = x.shape[-2] // side, x.shape[-1] // side
        if inputs.image_ids:
            ids = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
            zeros = torch.zeros(len(ids), 1)
            arguments[inputs.image_ids] = torch.cat([zeros, ids], dim=1).to(x)
        if inputs.text_ids:
            tokens = arguments["encoder_hidden_states"].shape[1]
            arguments[inputs.text_ids] = torch.zeros(tokens, 3).to(x)
        if inputs.image_shapes:
            arguments[inputs.image_shapes] = [[(1, rows, columns)]] * len(x)

    def _embedded_scale(
        self, arguments: dict[str, Any], scale: Tensor | None, x: Tensor
    ) -> Tensor | None:
        """What is added to the embedded time; a scale that is an argument is put there instead."""
        if scale is None:
            return None
        if self.takes_scale:
            factor = self._config.get(self.inputs.scale_factor, 1.0)
            arguments[self.inputs.scale] = (scale * factor).to(x.dtype)
            return None
        if self.guidance is None:
            features = guidance_features(scale - 1, self.guidance_embed_dim)
            arguments[self.inputs.scale_features] = features.to(x.dtype)
            return None
        embedded: Tensor = self.guidance(scale)
        return embedded

    def _embedded_end(self, cond: Cond | None) -> Tensor:
        """What is added to the embedded time for the time where the step ends."""
        assert self.end is not None
        embedded: Tensor = self.end(self.end_time(cond))
        return embedded


def pack(x: Tensor, side: int) -> Tensor:
    """Patches of x as tokens: [B, C, h, w] to [B, h w / side^2, C side^2], as diffusers packs latents."""
    b, c, h, w = x.shape
    if h % side or w % side:
        raise ConfigError(
            f"this network reads patches of {side} x {side}, and samples of {h} x {w} do not divide so: "
            "choose another size"
        )
    patches = x.reshape(b, c, h // side, side, w // side, side).permute(0, 2, 4, 1, 3, 5)
    return patches.reshape(b, (h // side) * (w // side), c * side * side)


def unpack(tokens: Tensor, side: int, sides: torch.Size) -> Tensor:
    """The inverse of `pack`, to [B, C, *sides]."""
    h, w = sides
    b, _, width = tokens.shape
    patches = tokens.reshape(b, h // side, w // side, width // side**2, side, side)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(b, width // side**2, h, w)


def _width(embedding: nn.Module) -> int:
    """The width of an embedded time."""
    linear = [module for module in embedding.modules() if isinstance(module, nn.Linear)][-1]
    return linear.out_features


def diffusers_class(class_name: str) -> Any:
    """diffusers' network of this name, or None."""
    with quietly():  # imported late, as it takes seconds
        import diffusers

        try:
            cls = getattr(diffusers, class_name, None)  # imports the file of the class
        except ImportError:
            return None
    is_network = isinstance(cls, type) and issubclass(cls, diffusers.ModelMixin)
    return cls if is_network else None


def diffusers_net(
    name: str,
    class_name: str,
    *,
    num_classes: int | None = None,
    guidance_embed_dim: int = 0,
    output_heads: int = 0,
    t_end_embed_dim: int = 0,
    outputs: int = 0,
    learned_sigma: bool = False,
    inputs: JsonObject | None = None,
    **config: Any,
) -> DiffusersNet:
    """Build a network of diffusers from these arguments.

    name     the net's own, for errors
    outputs  channels out per channel of x: 2 for `X0AndEps`; 0: out_channels, or in_channels
    inputs   how its forward is called, for a class that halfstep does not know
    """
    cls = diffusers_class(class_name)
    how = inputs_of(class_name, config | ({} if inputs is None else {"inputs": inputs}))
    if guidance_embed_dim:
        check_features(guidance_embed_dim)
        if how.scale_features:
            config["time_cond_proj_dim"] = guidance_embed_dim
    model = _built(name, class_name, cls, config, num_classes, outputs)
    net = DiffusersNet(
        model, how, num_classes, guidance_embed_dim=guidance_embed_dim, t_end_embed_dim=t_end_embed_dim,
        output_heads=output_heads,
        learned_sigma=learned_sigma,
    )  # fmt: skip
    if guidance_embed_dim and how.scale_features:
        nn.init.zeros_(cast(Any, model).time_embedding.cond_proj.weight)
    net.outputs = outputs
    return net


def _built(
    name: str, class_name: str, cls: Any, config: JsonObject, num_classes: int | None, outputs: int
) -> nn.Module:
    """Build a diffusers model from a config with halfstep's num_classes in place of its own option."""
    known, labels = signature(cls.__init__).parameters, LABELS.get(class_name)
    refuse_unknown(name, config, {*known, *OURS} - {"self", labels})
    refuse_other_conditions(name, {**config, "num_classes": num_classes})
    if num_classes is not None and labels is None:
        raise ConfigError(f"diffusers' {class_name} takes no labels: leave num_classes out")
    if "in_channels" in known and "out_channels" in known and labels is not None:
        channels = config.get("in_channels", known["in_channels"].default)
        out = outputs * channels or channels
        if outputs and config.get("out_channels", out) != out:
            raise ConfigError(
                f"outputs={outputs} of {channels} channels are {out}, and out_channels is "
                f"{config['out_channels']}: leave one of them out"
            )
        config = {"out_channels": out, **config}
    if labels is not None:
        # diffusers' table of a DiT has one row more than num_embeds_ada_norm, for the null class.
        dit = class_name == "DiTTransformer2DModel"
        config[labels] = (num_classes or 1) - 1 if dit else num_classes
    net: nn.Module = cls(**config)
    return net
