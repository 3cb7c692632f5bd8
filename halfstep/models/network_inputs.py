"""How the forward of a diffusers network is called, as data: one entry a class."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from halfstep.config import JsonObject, NetConfig
from halfstep.config.validate import CountOrNone, Validated
from halfstep.errors import ConfigError, unknown


@dataclass(frozen=True, kw_only=True)
class NetworkInputs(Validated):
    """The names of a network's arguments.

    sample        the argument for x
    timestep      the argument for the time
    label         the argument for labels; "" for a network without classes
    conditions    the argument of each tensor of a `Cond`, by the tensor's name.  A dot names a key of an
                  argument that is a dict: added_cond_kwargs.text_embeds
    optional      conditions that may be left out
    widths        the option of the network's config that holds the last side of a condition, by its name
    packed        side of the patches of x that become tokens [B, h w / side^2, C side^2]; 0: x stays as it is
    image_ids     the argument for the tokens' positions, [tokens, 3]: 0, row, column
    text_ids      the argument for the positions of the text's tokens, zeros [tokens, 3]
    image_shapes  the argument for the number of tokens: a list of (1, rows, columns) for each sample
    scale         the argument for the guidance scale, where the config has guidance_embeds
    scale_factor  the option of the config by which that scale is multiplied; "" for none
    scale_features   the argument for the features of the guidance scale that halfstep adds; else they are
                  embedded and added to the outputs of `time_embedding`
    time_embedding   the modules that embed the time; * stands for every block
    last_layer    the linear layer or convolution that puts out the prediction; "": it cannot become a bank of
                  heads
    time_factor   what the network multiplies its times by before their sinusoids
    """

    sample: str = "hidden_states"
    timestep: str = "timestep"
    label: str = ""
    conditions: dict[str, str] = field(default_factory=dict)
    optional: tuple[str, ...] = ()
    widths: dict[str, str] = field(default_factory=dict)
    packed: CountOrNone = 0
    image_ids: str = ""
    text_ids: str = ""
    image_shapes: str = ""
    scale: str = ""
    scale_factor: str = ""
    scale_features: str = ""
    time_embedding: tuple[str, ...] = ()
    last_layer: str = ""
    time_factor: float = 1.0


_TEXT = {"encoder_hidden_states": "encoder_hidden_states"}
_POOLED = _TEXT | {"pooled_projections": "pooled_projections"}
_JOINT = {"encoder_hidden_states": "joint_attention_dim"}
_POOLED_WIDTHS = _JOINT | {"pooled_projections": "pooled_projection_dim"}
_MASKED = _TEXT | {"encoder_attention_mask": "encoder_attention_mask"}

INPUTS: Mapping[str, NetworkInputs] = {
    "UNet2DModel": NetworkInputs(
        sample="sample",
        label="class_labels",
        time_embedding=("time_embedding",),
        last_layer="conv_out",
    ),
    "UNet2DConditionModel": NetworkInputs(
        sample="sample",
        label="class_labels",
        conditions=_TEXT,
        widths={"encoder_hidden_states": "encoder_hid_dim cross_attention_dim"},
        scale_features="timestep_cond",
        last_layer="conv_out",
        time_embedding=("time_embedding",),
    ),
    "DiTTransformer2DModel": NetworkInputs(
        label="class_labels",
        time_embedding=("transformer_blocks.*.norm1.emb",),
        last_layer="proj_out_2",
    ),
    "PixArtTransformer2DModel": NetworkInputs(
        conditions=_MASKED,
        widths={"encoder_hidden_states": "caption_channels"},
        time_embedding=("adaln_single.emb.timestep_embedder",),
        last_layer="proj_out",
    ),
    "SD3Transformer2DModel": NetworkInputs(
        conditions=_POOLED,
        widths=_POOLED_WIDTHS,
        time_embedding=("time_text_embed.timestep_embedder",),
        last_layer="proj_out",
    ),
    "FluxTransformer2DModel": NetworkInputs(
        conditions=_POOLED,
        widths=_POOLED_WIDTHS,
        packed=2,
        image_ids="img_ids",
        text_ids="txt_ids",
        scale="guidance",
        time_embedding=("time_text_embed.timestep_embedder",),
        last_layer="proj_out",
        time_factor=1000.0,
    ),
    "SanaTransformer2DModel": NetworkInputs(
        conditions=_MASKED,
        widths={"encoder_hidden_states": "caption_channels"},
        scale="guidance",
        scale_factor="guidance_embeds_scale",
        time_embedding=("time_embed.emb.timestep_embedder",),
    ),
    "QwenImageTransformer2DModel": NetworkInputs(
        conditions=_TEXT | {"encoder_hidden_states_mask": "encoder_hidden_states_mask"},
        widths=_JOINT,
        packed=2,
        image_shapes="img_shapes",
        time_embedding=("time_text_embed.timestep_embedder",),
        last_layer="proj_out",
        time_factor=1000.0,
    ),
}
"""The inputs of diffusers' networks, by class."""


def inputs_of(class_name: str, config: NetConfig) -> NetworkInputs:
    """The inputs of a network of this class and config.

    `config["inputs"]`, a mapping of the fields of `NetworkInputs`, describes a class that is not in `INPUTS`.
    """
    if (own := config.get("inputs")) is not None:
        return read_inputs(own)
    if class_name not in INPUTS:
        raise ConfigError(
            f"halfstep does not know how diffusers' {class_name} is called: describe it with inputs, "
            "{'sample': 'hidden_states', 'conditions': {...}} (docs/how-to/diffusers.md)"
        )
    inputs = INPUTS[class_name]
    more = _more_conditions(class_name, config)
    return replace(inputs, conditions={**inputs.conditions, **more})


def read_inputs(about: object) -> NetworkInputs:
    """The inputs that a mapping describes; an unknown key is refused with a suggestion."""
    if not isinstance(about, Mapping):
        raise ConfigError(
            f"inputs is a mapping of arguments' names, got {type(about).__name__}: write for example "
            "{'sample': 'hidden_states'}"
        )
    names = [f.name for f in fields(NetworkInputs)]
    for name in about:
        if name not in names:
            raise unknown("key of inputs called", name, names)
    values: JsonObject = {k: tuple(v) if isinstance(v, list) else v for k, v in about.items()}
    return NetworkInputs(**values)


def _more_conditions(class_name: str, config: NetConfig) -> dict[str, str]:
    """The conditions that depend on the config."""
    names: tuple[str, ...] = ()
    if config.get("addition_embed_type") == "text_time":  # SDXL
        names = "text_embeds", "time_ids"
    if class_name == "PixArtTransformer2DModel":
        sizes = config.get("use_additional_conditions")
        if sizes or (sizes is None and config.get("sample_size", 128) == 128):  # its own rule
            names = "resolution", "aspect_ratio"
    return {name: f"added_cond_kwargs.{name}" for name in names}


def width_of(inputs: NetworkInputs, name: str, config: Mapping[str, Any]) -> int | None:
    """The last side of a condition that the config determines, or None."""
    for option in inputs.widths.get(name, "").split():
        if isinstance(width := config.get(option), int):
            return width
    return None
