"""The weights of a network in a folder of diffusers, read tensor by tensor."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, ExitStack
from pathlib import Path
from typing import Any, TypedDict

import torch
from safetensors import safe_open
from torch import nn, Tensor
from torch.nn.modules.module import register_module_parameter_registration_hook

from halfstep import storage
from halfstep.models.half_storage import names_to_cast

WEIGHTS = "diffusion_pytorch_model"
"""The name of the files of weights in a folder of diffusers."""


class _Index(TypedDict):
    weight_map: dict[str, str]


def variant_of(folder: Path) -> str | None:
    """fp16 where a folder has no other weights; None otherwise."""
    names = [path.name for path in folder.glob("*.safetensors")]
    return "fp16" if names and all(".fp16" in name for name in names) else None


def half_network(cls: Any, folder: Path, dtype: torch.dtype) -> tuple[nn.Module, list[str]]:
    """A network of this class with the weights in its folder, and the names that only one of the two has.

    Weights that `names_to_cast` names are rounded to the dtype as they are read, all others are float32.  No
    more than these and one tensor of a file is in memory.
    """
    config = cls.load_config(folder, local_files_only=True)
    with _without_weights():
        net = cls.from_config(config)
    rounded, missing, wrong = names_to_cast(net), dict.fromkeys(net.state_dict()), list[str]()
    for name, value in float32_tensors(folder, net):
        kept_in = dtype if name in rounded else value.dtype
        if name not in missing or not _place(net, name, value, kept_in):
            wrong.append(name)
        missing.pop(name, None)
    for part in net.modules():  # those that no file holds
        for name, buffer in part._buffers.items():
            if buffer is not None and buffer.is_floating_point():
                part._buffers[name] = buffer.float()
    return net.eval(), [*missing, *wrong]


def float32_tensors(folder: Path, net: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The tensors in a folder in the order of their names in the network, one at a time, in float32."""
    variant = "" if (name := variant_of(folder)) is None else f".{name}"
    if (index := folder / f"{WEIGHTS}.safetensors.index{variant}.json").exists():
        files = sorted(set(storage.read_unsealed_json(index, _Index)["weight_map"].values()))
    else:
        files = [f"{WEIGHTS}{variant}.safetensors"]
    with ExitStack() as opened:
        file_of = dict[str, Any]()
        for file in files:
            # Not mapped into memory, where all that was read would stay.
            reader = safe_open(folder / Path(file).name, framework="pt", backend="pread")
            opened.enter_context(reader)
            file_of |= dict.fromkeys(reader.keys(), reader)
        for name, old in sorted(_renamed(net, file_of).items()):
            value = file_of[old].get_tensor(old)
            yield name, value.float() if value.is_floating_point() else value


def _renamed(net: nn.Module, names: Any) -> dict[str, str]:
    """The names in the files by those in the network: attention layers of 2022 had others."""
    renamed: dict[str, str] = {name: name for name in names}
    getattr(net, "_fix_state_dict_keys_on_load", lambda state: None)(renamed)
    return renamed


def _place(net: nn.Module, name: str, value: Tensor, dtype: torch.dtype) -> bool:
    """Give a network this tensor in this dtype; False where it has another shape or kind there."""
    path, _, leaf = name.rpartition(".")
    part = net.get_submodule(path)
    old: Tensor = getattr(part, leaf)
    if old.shape != value.shape or old.is_floating_point() != value.is_floating_point():
        return False
    value = value.to(dtype)
    if leaf in part._parameters:
        part._parameters[leaf] = nn.Parameter(value, requires_grad=value.is_floating_point())
    else:
        part._buffers[leaf] = value
    return True


@contextmanager
def _without_weights() -> Iterator[None]:
    """Around building a network in this thread: its parameters have no memory; its buffers have."""
    thread = threading.get_ident()

    def without(part: nn.Module, name: str, parameter: nn.Parameter | None) -> Any:
        if parameter is None or threading.get_ident() != thread:
            return None  # as it is
        return nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)

    handle = register_module_parameter_registration_hook(without)
    try:
        yield
    finally:
        handle.remove()
