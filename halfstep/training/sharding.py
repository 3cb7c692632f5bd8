"""Shard networks over the processes of a run: the only file that knows FSDP2, torch's `fully_shard`.

Each process holds some rows of every weight, and so of its gradient, moments and average, as a DTensor.  The
weights of a block are gathered while it runs, forward and backward, and freed after it.
"""

import copy
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from itertools import chain
from typing import Any, TypeVar
from weakref import WeakSet

import torch
from torch import nn, Tensor

from halfstep.diffusion.denoiser import Denoiser
from halfstep.errors import ConfigError
from halfstep.methods.stages import Stage
from halfstep.models.hooks import FeatureExtractor, Projected
from halfstep.models.lora import LoraNet
from halfstep.training.config import TrainingConfig

N = TypeVar("N", bound=nn.Module)
_meshes, _sharded = list[Any](), WeakSet[nn.Module]()
"""All meshes and sharded networks of this program, which hold its process group."""


def mesh_of(device: torch.device, world: int) -> Any:
    """The device mesh of all processes."""
    from torch.distributed.device_mesh import init_device_mesh

    _meshes.append(init_device_mesh(device.type, (world,)))
    return _meshes[-1]


def release() -> None:
    """Empty all sharded networks and meshes, so that nothing holds the process group: before its end."""
    for net in list(_sharded):
        vars(net).clear()
    while _meshes:  # torch keeps them, in a cache of how operations are sharded
        getattr(_meshes.pop(), "_pg_registry", {}).clear()


def refuse_settings(training: TrainingConfig, *, offload: bool = False) -> None:
    """`ConfigError` for settings that need whole weights."""
    if training.optimiser == "adamw-8bit":
        raise ConfigError(
            "optimiser 'adamw-8bit' is not sharded: write adamw, whose moments --shard divides among the "
            "processes"
        )
    if offload:
        raise ConfigError(
            "a sharded teacher is in the memory of all devices: leave out offload (command line: --offload) "
            "or --shard"
        )
    if training.optimiser == "muon":
        raise ConfigError(
            "optimiser 'muon' turns whole matrices, and --shard leaves each process some rows of them: write "
            "adamw"
        )
    if training.compile:
        raise ConfigError(
            "a compiled network cannot be sharded: leave out compile (command line: --compile) or --shard"
        )


def shard_stage(stage: Stage, mesh: Any, device: torch.device) -> None:
    """Shard a stage's student and the denoisers of its objective, in place; move the others to the device.

    Networks that are sharded already, such as a teacher that was a student, stay as they are.  Of a LoRA the
    base is sharded, while each process has the adapter whole.
    """
    for network in (stage.student, *stage.objective.networks):
        for part in _wholes(network):
            adapters = set[nn.Parameter]()
            if isinstance(part, LoraNet):
                base = part.base
                adapters, part = set(base.net.parameters()) - set(base.weights), base.net
            if not is_sharded(part):
                _shard(part, mesh, adapters)
            for parameter in adapters:  # they do not move with a sharded base
                parameter.data = parameter.data.to(device)
        network.to(device)


def is_sharded(network: nn.Module) -> bool:
    from torch.distributed.fsdp import FSDPModule

    return isinstance(network, FSDPModule)


def has_shards(network: nn.Module) -> bool:
    """Whether a parameter is sharded; the base of a LoRA has none."""
    return any(hasattr(parameter, "full_tensor") for parameter in network.parameters())


def whole_copy(network: nn.Module) -> nn.Module:
    """A whole copy of a sharded network in the CPU's memory; of a LoRA with its base."""
    return network.on_own_base() if isinstance(network, LoraNet) else copy.deepcopy(network)


def gathered(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """Whole tensors in the CPU's memory, gathered one after another; empty unless this process keeps them.

    All processes call it together.
    """
    whole = dict[str, Tensor]()
    for name, tensor in tensors.items():
        value = full(tensor)
        if keep:
            whole[name] = value.to("cpu")
    return whole


def full(tensor: Tensor) -> Tensor:
    """The whole tensor of a sharded one, on every process; another as it is."""
    gather = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()


def local(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor; another as it is."""
    part = getattr(tensor, "to_local", None)
    return tensor if part is None else part()


def placed(tensor: Tensor, like: Tensor) -> Tensor:
    """The tensor sharded like another one, each process keeping its part of its own copy."""
    if not hasattr(like, "to_local"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    on_device = tensor.to(local(like).device)
    return distribute_tensor(on_device, like.device_mesh, like.placements, src_data_rank=None)  # type: ignore[attr-defined]


def placed_all(tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each tensor sharded like the one of its name, where both have one shape."""
    return {
        name: placed(tensor, like[name])
        if name in like and like[name].shape == tensor.shape
        else tensor
        for name, tensor in tensors.items()
    }


def _wholes(network: nn.Module) -> Iterator[nn.Module]:
    """The parts that are sharded as one: the networks of denoisers, and the projectors of features."""
    for part in network.modules():
        if isinstance(part, Denoiser):
            yield part.net
        elif isinstance(part, FeatureExtractor | Projected):
            yield from part.projectors.children()


def _shard(net: nn.Module, mesh: Any, ignored: set[nn.Parameter]) -> None:
    """Shard a network in place, block by block; a deep copy of it is whole, in the CPU's memory.

    ignored  parameters that stay whole
    """
    from torch.distributed.fsdp import fully_shard

    _refuse(net)
    blank = _copy_with(net, (value.to("meta") for value in _tensors(net)))
    for parameter in net.parameters():
        parameter.data = parameter.data.contiguous()  # no other memory format can be sharded
    for part in (*_blocks(net), net):
        # Also the weights outside blocks: between updates a network's parameters are always the shards.
        fully_shard(part, mesh=mesh, reshard_after_forward=True, ignored_params=ignored)
    net.__deepcopy__ = partial(_whole, net, blank)  # type: ignore[assignment]
    _sharded.add(net)
    # It stays on its device and in its type, whatever it is moved with: torch would swap its tensors.
    net._apply = lambda *args, **options: net  # type: ignore[method-assign]


def _refuse(net: nn.Module) -> None:
    """`ConfigError` for weights that cannot be divided."""
    for name, parameter in net.named_parameters():
        if parameter.ndim == 0:
            raise ConfigError(
                f"the parameter '{name}' is a single number, which cannot be sharded: give it the shape [1], "
                "or leave --shard out"
            )
    kinds = {p.dtype for p in net.parameters() if p.requires_grad}
    if len(kinds) > 1:
        raise ConfigError(
            f"a network of weights in {' and '.join(sorted(map(str, kinds)))} cannot be sharded: give all "
            "trained weights one dtype, or leave --shard out"
        )


def _blocks(net: nn.Module) -> list[nn.Module]:
    """The blocks that are gathered by themselves, inner ones first: transformer blocks, ResNet blocks.

    They are the members of lists of one class.  A block that shares weights with another part is no block.
    """
    owners = defaultdict[int, set[int]](set)
    for part in net.modules():
        for parameter in part.parameters(recurse=False):
            owners[id(parameter)].add(id(part))
    blocks = dict[nn.Module, None]()
    for part in net.modules():
        if isinstance(part, nn.ModuleList) and len({type(block) for block in part}) == 1:
            blocks |= {block: None for block in part if _has_its_own(block, owners)}
    return list(reversed(blocks))


def _has_its_own(block: nn.Module, owners: Mapping[int, set[int]]) -> bool:
    inside = {id(part) for part in block.modules()}
    weights = list(block.parameters())
    return bool(weights) and all(owners[id(weight)] <= inside for weight in weights)


def _tensors(net: nn.Module) -> Iterator[Tensor]:
    return chain(net.parameters(), net.buffers())


def _copy_with(net: N, values: Iterable[Tensor]) -> N:
    """A deep copy with these values for parameters and buffers, in their order."""
    memo: dict[int, Any] = {
        id(old): nn.Parameter(value, old.requires_grad) if isinstance(old, nn.Parameter) else value
        for old, value in zip(_tensors(net), values, strict=True)
    }
    return copy.deepcopy(net, memo)


def _whole(net: nn.Module, blank: nn.Module, memo: object) -> nn.Module:
    """A whole copy of a sharded network on the CPU, gathered by all processes together.

    Adapters of a LoRA are those of the time when it was sharded, and zero if they are gone.
    """
    tensors = dict(chain(net.named_parameters(), net.named_buffers()))
    names = [name for name, _ in chain(blank.named_parameters(), blank.named_buffers())]
    values = (
        full(tensors[name].detach()).to("cpu", copy=True)
        if name in tensors
        else torch.zeros_like(old, device="cpu")
        for name, old in zip(names, _tensors(blank), strict=True)
    )
    whole = _copy_with(blank, values)
    modes = {name: part.training for name, part in net.named_modules()}
    for name, part in whole.named_modules():
        part.training = modes.get(name, part.training)
    for name, parameter in whole.named_parameters():
        if name in tensors:
            parameter.requires_grad_(tensors[name].requires_grad)
    if hasattr(net, "_frozen_before"):  # by `Denoiser.freeze`
        whole._frozen_before = net._frozen_before
    return whole
