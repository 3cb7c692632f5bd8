"""The tensors and the metadata of a LoRA's file, in the names of diffusers and of kohya.

Its alpha is its rank in every layer, so that W x becomes W x + B A x.
"""

import json
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from halfstep.models.lora import A, B, lora_config
from halfstep.pipeline.lora_file import LoraFile, METADATA

SDXL_NAMES = {"add_embedding.linear_1": "label_emb_0_0", "add_embedding.linear_2": "label_emb_0_2"}
"""Layers that diffusers' reader of kohya's names knows by their original names alone."""


def layers_of(lora: LoraFile) -> Iterator[tuple[str, Tensor, Tensor]]:
    """The path, A and B of each layer."""
    for name, a in lora.tensors.items():
        if name.endswith(A):
            path = name.removesuffix(A)
            yield path, a, lora.tensors[path + B]


def diffusers_tensors(lora: LoraFile) -> dict[str, Tensor]:
    """The tensors as diffusers' `save_lora_weights` names them."""
    return {f"{lora.component}.{name}": value for name, value in lora.tensors.items()}


def diffusers_metadata(lora: LoraFile, model: Any) -> dict[str, str]:
    """The options of peft's `LoraConfig`, where diffusers looks for them; those alone that matter.

    model  diffusers' network
    """
    options = lora_config(model, {path: len(a) for path, a, _ in layers_of(lora)}, lora.rank)
    named = {f"{lora.component}.{name}": value for name, value in options.items()}
    return {"format": "pt", METADATA: json.dumps(named, indent=2, sort_keys=True)}


def kohya_tensors(lora: LoraFile) -> dict[str, Tensor]:
    """The tensors of a U-Net by kohya's names, with the alpha of each layer; ComfyUI reads these."""
    tensors = dict[str, Tensor]()
    for path, a, b in layers_of(lora):
        name = f"lora_unet_{SDXL_NAMES.get(path, path.replace('.', '_'))}"
        tensors[f"{name}.lora_down.weight"] = a
        tensors[f"{name}.lora_up.weight"] = b
        tensors[f"{name}.alpha"] = torch.tensor(float(len(a)))
    return tensors


def kohya_metadata(lora: LoraFile) -> dict[str, str]:
    """Rank and alpha, where kohya's trainer keeps them."""
    return {
        "format": "pt",
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(lora.rank),
        "ss_network_alpha": str(float(lora.rank)),
    }
