"""LoRA: a student that is its teacher's network with a small trainable adapter.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, through peft: a layer computes
W x + B A x, with W frozen.  The weights W are in memory once, for the teacher (the last adapter, or none) and
the student (the new one).
"""

import copy
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import chain, count
from typing import Any
from weakref import finalize

import torch
from torch import nn, Tensor

from halfstep.batch import Cond
from halfstep.config import JsonObject
from halfstep.config.validate import Count, Validated
from halfstep.diffusion.denoiser import Denoiser, not_trained
from halfstep.errors import ConfigError
from halfstep.identity import digest_of
from halfstep.models.diffusers_net import DiffusersNet
from halfstep.quiet import quietly
from halfstep.rng import fork_rng, key

A, B = ".lora_A.weight", ".lora_B.weight"
"""The ends of the names of an adapter's tensors, [rank, in] and [out, rank] or kernels of convolutions."""
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True, kw_only=True)
class Lora(Validated):
    """An adapter of low rank that is trained in place of all weights; its alpha is its rank (Hu et al.
    2022).

    Raises:
        ConfigError: a rank below 1.
    """

    rank: Count
    """Rank of the matrices that are added to the weights of linear layers and convolutions; a layer with a
    shorter side gets its full rank."""


class LoraBase:
    """The modules of a network with peft's layers in them, on the same weights; the network is left alone.

    It is always in eval mode, without dropout and with the statistics of its batch norms as they are, and its
    weights are frozen.

    net   of its layers those that are frozen get no adapter
    rank  of every adapter
    digest  of the network and what is around it, by default `digest_of` the network
    """

    def __init__(self, net: nn.Module, rank: int, digest: str = ""):
        if find_spec("peft") is None:
            raise ConfigError(
                "a LoRA needs the package peft, which is not installed: pip install 'halfstep[lora]'"
            )
        if getattr(net, "quantised", None):
            raise ConfigError("this network is int8 and cannot be trained: give its float original")
        self.rank, self.frozen, self.digest = rank, not_trained(net), digest or digest_of(net)
        self.dtype = getattr(net, "input_dtype", next(net.parameters(), torch.empty(0)).dtype)
        self._given = getattr(net, "stored_dtype", None)
        memo: dict[int, Any] = {id(t): t for t in chain(net.parameters(), net.buffers())}
        self.net = copy.deepcopy(net, memo).eval().requires_grad_(False)
        layers = adaptable(self.net, self.frozen)
        if not layers:
            raise ConfigError(
                f"a LoRA is of linear layers and convolutions, and this {type(net).__name__} has none that "
                "are trained: leave lora out (command line: --lora-rank)"
            )
        ranks = {name: min(rank, *layer.weight.flatten(1).shape) for name, layer in layers.items()}
        self.config = lora_config(network_of(self.net), ranks, rank)
        self.paths, self._layers, self._active = list(layers), list[Any](), ""
        self.unused = list[str]()

    def add(self, source: str = "") -> str:
        """Add a trainable adapter with the values of `source`, or one that changes nothing; its name."""
        self._remove_unused()
        # The lowest number that is free, so that a compiled network knows the name from before.
        names = set(self._layers[0].lora_A) if self._layers else set()
        name = next(str(k) for k in count() if str(k) not in names)
        self._inject(name)
        for k, layer in enumerate(self._layers):
            for pair in (layer.lora_A, layer.lora_B):
                pair[name].to(dtype=torch.promote_types(self.dtype, torch.float32))
                if source:
                    pair[name].load_state_dict(pair[source].state_dict())
            if not source:
                _draw(layer.lora_A[name].weight, k)
                nn.init.zeros_(layer.lora_B[name].weight)
        return name

    def _inject(self, name: str) -> None:
        with quietly():  # imported late, as it takes seconds
            from peft import inject_adapter_in_model, LoraConfig

            model, before = network_of(self.net), self._active
            with fork_rng(0):
                inject_adapter_in_model(LoraConfig(**self.config), model, adapter_name=name)
        del model.peft_config
        self._layers = [model.get_submodule(path) for path in self.paths]
        self._active = name
        self._switch(before)
        self.net.eval()

    def _remove_unused(self) -> None:
        """Remove the adapters of networks that are gone.

        Not as they go: the garbage collector may run while the layers are iterated over.
        """
        while self.unused:
            name = self.unused.pop()
            if self._active == name:
                self._switch("")
            for layer in self._layers:
                layer.delete_adapter(name)

    @property
    def cast_here(self) -> bool:
        """Whether its weights were given in float32 and are stored in half precision now."""
        return self._given != getattr(self.net, "stored_dtype", None)

    @property
    def weights(self) -> list[nn.Parameter]:
        """The weights of the network, without adapters."""
        pairs = [pair for layer in self._layers for pair in (layer.lora_A, layer.lora_B)]
        adapters = {id(p) for pair in pairs for p in pair.parameters()}
        return [p for p in self.net.parameters() if id(p) not in adapters]

    def parts(self, name: str) -> nn.Module:
        """The adapter's layers, as a tree with the names of the network's."""
        root = nn.Module()
        for path, layer in zip(self.paths, self._layers, strict=True):
            part = root
            for step in path.split("."):
                if step not in part._modules:
                    part.add_module(step, nn.Module())
                part = part.get_submodule(step)
            part.add_module("lora_A", layer.lora_A[name])
            part.add_module("lora_B", layer.lora_B[name])
        return root

    @contextmanager
    def using(self, name: str, *, stays: bool) -> Iterator[nn.Module]:
        """The network with this adapter, or none; with `stays` it keeps it, else it gets back the one before.

        The adapter that is trained stays: gradient checkpointing runs layers again in the backward.
        """
        self._remove_unused()
        before = self._active
        self._switch(name)
        try:
            yield self.net
        finally:
            if not stays:
                self._switch(before)

    def _switch(self, name: str) -> None:
        if name != self._active:
            for layer in self._layers:  # peft's own set_adapter would thaw and freeze weights
                layer._active_adapter = [name] if name else []
            self._active = name

    def separate(self) -> "LoraBase":
        """A copy with weights of its own, without adapters."""
        new = copy.copy(self)
        new.net = copy.deepcopy(self.net)
        new._layers = [network_of(new.net).get_submodule(path) for path in self.paths]
        new.unused = list(new._layers[0].lora_A)
        new._remove_unused()
        return new

    def plain_copy(self) -> nn.Module:
        """A copy of the network without adapters, on its own weights."""
        if getattr(self.net, "stored_dtype", None) is not None:
            raise ConfigError(
                "the base of this LoRA is stored in half precision, as it was trained: load the stage in the "
                "folder of its run, whose weights are in float32"
            )
        self._remove_unused()
        net = copy.deepcopy(self.net)
        for path in self.paths:
            parent, _, leaf = path.rpartition(".")
            part = network_of(net).get_submodule(parent)
            part._modules[leaf] = part.get_submodule(leaf).base_layer
        return net


class LoraNet(nn.Module):
    """A network with one adapter, or without any; `parameters` and `state_dict` are the adapter's alone.

    Its base, which others share, is no part of it, but moves with it.  A copy is another adapter of the same
    values on the same base; without an adapter, one that changes nothing.  Other attributes are those of the
    base's network.

    holds_scale  whether the adapter holds the one guidance scale of its student: a condition's is not read
    """

    holds_scale = False
    stored_dtype = None
    """That of the adapter, whatever its base's is."""

    def __init__(self, base: LoraBase, name: str = ""):
        super().__init__()
        self._base, self._name = (base,), name
        self.adapter = base.parts(name) if name else nn.Module()
        if name:
            finalize(self, base.unused.append, name).atexit = False

    @property
    def base(self) -> LoraBase:
        """The network with its layers for adapters."""
        return self._base[0]

    @property
    def base_digest(self) -> str:
        """The base's share of `digest_of` this network."""
        return self.base.digest

    @property
    def input_dtype(self) -> torch.dtype:
        """The dtype that the network takes samples in."""
        return self.base.dtype

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        if self.holds_scale and cond is not None:
            cond = replace(cond, guidance_scale=None)
        trains = torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters())
        with self.base.using(self._name, stays=trains) as net:
            out: Tensor = net(x, t, cond)
        return out

    def tensors(self) -> dict[str, Tensor]:
        """The adapter's tensors, by the names of the network's layers."""
        return dict(self.adapter.state_dict())

    def merged(self) -> nn.Module:
        """The network with the adapter in its weights, without LoRA layers; a copy."""
        net = self.base.plain_copy()
        merge(net, self.tensors(), "this adapter")
        return net

    def on_own_base(self) -> "LoraNet":
        """A copy of the adapter on a copy of its base."""
        new = self._another(self.base.separate())
        new.adapter.load_state_dict(self.adapter.state_dict())
        return new

    def compile(self, *args: Any, **options: Any) -> None:
        """Compile the base, for all adapters."""
        self.base.net.compile(*args, **options)

    def _apply(self, fn: Any, recurse: bool = True) -> "LoraNet":
        self.base.net._apply(fn, recurse)  # the adapters are in its layers
        return self

    def __deepcopy__(self, memo: Any) -> "LoraNet":
        return self._another(self.base, self._name)

    def _another(self, base: LoraBase, source: str = "") -> "LoraNet":
        """A new adapter of this base, with the values of `source` if that is one of its."""
        new = LoraNet(base, base.add(source))
        new.holds_scale = self.holds_scale
        return new

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_"):
                raise
            return getattr(self.base.net, name)


def shared_weights(networks: Iterable[nn.Module]) -> list[nn.Parameter]:
    """The weights that LoRAs share, which are no parameters of theirs; each once."""
    parts = chain.from_iterable(net.modules() for net in networks)
    weights = [p for part in parts if isinstance(part, LoraNet) for p in part.base.weights]
    return list({id(p): p for p in weights}.values())


def plain_denoiser(denoiser: Denoiser) -> Denoiser:
    """The denoiser with its adapter merged into a copy of its network; itself if it has none."""
    if not isinstance(denoiser.net, LoraNet):
        return denoiser
    plain = Denoiser(
        denoiser.net.merged(),
        denoiser.schedule,
        denoiser.parameterisation,
        time=denoiser.time,
        autocast=denoiser.autocast,
    )
    return plain.train(denoiser.training)


def network_of(net: nn.Module) -> Any:
    """The module whose layers get adapters, and names in files: diffusers' own, or the network itself."""
    return net.model if isinstance(net, DiffusersNet) else net


def adaptable(net: nn.Module, frozen: frozenset[str]) -> dict[str, Any]:
    """The layers of `network_of` a network that can have an adapter, by their names in it.

    They are linear layers and convolutions that are trained and are called as modules; torch's own attention
    reads weights instead.  A weight with two names, which a merge would change twice, is left out.
    """
    parts, prefix = dict(net.named_modules()), "model." if network_of(net) is not net else ""
    uses = Counter(id(p) for _, p in net.named_parameters(remove_duplicate=False))
    layers = {}
    for name, layer in parts.items():
        parent = parts[name.rpartition(".")[0]]
        of_torch = (
            type(parent).__module__.startswith("torch.nn.") and type(parent) not in CONTAINERS
        )
        if not name.startswith(prefix) or layer is net or of_torch or not _is_plain(layer):
            continue
        if uses[id(layer.weight)] == 1 and f"{name}.weight" not in frozen:
            layers[name.removeprefix(prefix)] = layer
    return layers


def _is_plain(layer: nn.Module) -> bool:
    """Whether peft's layer computes what adding to the weight does: it knows no dilation and no groups."""
    if type(layer) is nn.Linear:
        return True
    plain = type(layer) is nn.Conv2d and layer.padding_mode == "zeros" and layer.groups == 1
    return plain and layer.dilation == (1, 1)


def lora_config(model: nn.Module, ranks: Mapping[str, int], rank: int) -> JsonObject:
    """The arguments of peft's `LoraConfig` for adapters of these ranks by layer, with alpha = rank.

    The layers are a list, by which peft also finds others whose names end alike; then they are a pattern.
    """
    names: Any = sorted(ranks)
    ends = tuple(f".{name}" for name in names)
    if any(name.endswith(ends) for name, _ in model.named_modules() if name not in ranks):
        names = "|".join(map(re.escape, names))
    others = {f"^{re.escape(name)}": r for name, r in ranks.items() if r != rank}
    return {
        "r": rank,
        "lora_alpha": rank,
        "target_modules": names,
        "rank_pattern": others,
        "alpha_pattern": dict(others),
        "bias": "none",
    }


@torch.no_grad()
def merge(net: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Add an adapter's products B A to the weights of a network, in place: in float64, then rounded once.

    tensors  by the names of the layers in `network_of(net)`
    source   names the adapter in an error
    """
    layers = dict(network_of(net).named_modules())
    for name in [name.removesuffix(A) for name in tensors if name.endswith(A)]:
        weight = getattr(layers.get(name), "weight", None)
        a, b = tensors[name + A], tensors.get(name + B)
        if not isinstance(weight, Tensor) or b is None or not _fits(weight, a, b):
            raise ConfigError(
                f"{source} does not fit this network: its layer '{name}' is missing or has another shape; "
                "give the network that it was made for"
            )
        weight.copy_(weight.double() + product(a, b).reshape(weight.shape).to(weight.device))


def product(a: Tensor, b: Tensor) -> Tensor:
    """B A in float64, [out, in]: of convolutions with the kernel's sides in `in`."""
    return b.double().flatten(1) @ a.double().flatten(1)


def _fits(weight: Tensor, a: Tensor, b: Tensor) -> bool:
    return a.shape[1:] == weight.shape[1:] and (len(b), b[0].numel()) == (len(weight), len(a))


def _draw(weight: Tensor, number: int) -> None:
    """Uniform within 1 / sqrt(in), as torch's linear layers and peft begin; by the layer's number alone."""
    generator = torch.Generator().manual_seed(key(0, number))
    drawn = torch.rand(weight.shape, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        weight.copy_((2 * drawn - 1) / weight[0].numel() ** 0.5)
