"""Check that a network still is what its recipe builds, since it could not be loaded otherwise."""

import warnings
from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy
from torch.optim.swa_utils import AveragedModel

from halfstep.code_identity import identity, PLAIN
from halfstep.config import JsonObject
from halfstep.errors import ConfigError
from halfstep.models import build_like, recipe
from halfstep.rng import fork_rng

WRAPPERS: Mapping[str, str] = {
    "OptimizedModule": "torch.compile (give what it was made from, net._orig_mod, and compile=True)",
    "DataParallel": "DataParallel (give its .module, and start several processes with torchrun)",
    "DistributedDataParallel": "DistributedDataParallel (give its .module: training wraps it by itself)",
    "FullyShardedDataParallel": "FullyShardedDataParallel (give the network itself)",
    "FSDPModule": "fully_shard (give the network itself, and RunOptions(shard=True))",
}
IN_TRAINING = {"p", "dropout", "inplace", "momentum"}
Structure = tuple[JsonObject, ...]


def refuse_wrapped(net: nn.Module) -> None:
    """`ConfigError` for a network that is, or has a part, in a wrapper that changes the weights' names."""
    for name, part in net.named_modules():
        kinds = [kind.__name__ for kind in type(part).__mro__ if kind.__name__ in WRAPPERS]
        if isinstance(part, AveragedModel):
            wrapper = "AveragedModel (give its .module, and ema=0.999 averages)"
        elif kinds:
            wrapper = WRAPPERS[kinds[0]]
        else:
            continue
        subject = f"its part '{name}'" if name else "this network"
        raise ConfigError(
            f"{subject} is inside {wrapper}: saved under the wrapper's names, it could not be loaded"
        )


def refuse_changed_net(net: nn.Module) -> None:
    """`ConfigError` for a network that `build` would no longer make from its recipe."""
    refuse_wrapped(net)
    name, config = recipe(net)
    if not getattr(net, "quantised", None):  # the tensors of quantised networks are torchao's
        refuse_changed(net, lambda: build_like(net, config), name, draws=":" in name)


def refuse_changed(
    net: nn.Module, fresh: Callable[[], nn.Module], name: str, *, draws: bool = True
) -> None:
    """`ConfigError` for a network whose parts, tensors, settings or hooks differ from a fresh one's.

    fresh  builds the fresh network; global random generators are restored
    name   of the recipe
    draws  whether its weights must be drawn: a user's code may compute with them, or keep some
    """
    refuse_wrapped(net)
    if any(map(is_lazy, net.parameters())):
        raise ConfigError(
            "this network has lazy layers, which do not know their sizes yet and could not be loaded: give "
            "all sizes (nn.Linear for nn.LazyLinear)"
        )
    if difference := _difference(_structure(net), _structure(_built(fresh, draws))):
        raise ConfigError(
            f"this {type(net).__name__} is no longer what '{name}' builds: {difference}; saved, it could not "
            "be loaded again: build it so by a function of your own, 'package.module:function'"
        )


def _built(fresh: Callable[[], nn.Module], draws: bool) -> nn.Module:
    with fork_rng(), warnings.catch_warnings(action="ignore"):
        if not draws:
            try:
                with torch.device("meta"):
                    return fresh()
            except (
                RuntimeError,
                NotImplementedError,
            ):  # it computes with the weights that it draws
                pass
        return fresh()


def _structure(net: nn.Module) -> Structure:
    """A network's tensor shapes, kinds of parts, settings, hooks and shared weights, each by name."""
    tensors = {
        name: None if is_lazy(value) else tuple(getattr(value, "shape", ()))
        for name, value in net.state_dict(keep_vars=True).items()
    }
    parts, settings, hooks = JsonObject(), JsonObject(), JsonObject()
    for name, part in net.named_modules():
        parts[name] = _kind(part)
        settings |= {f"{name}.{key}".strip("."): value for key, value in _settings(part).items()}
        for hook in (*part._forward_hooks.values(), *part._forward_pre_hooks.values()):
            hook_name = getattr(hook, "__qualname__", type(hook).__qualname__)
            hooks[f"{name}.{hook_name}".strip(".")] = None
    first = dict[int, str]()
    shared = {
        name: first.setdefault(id(value), name)
        for name, value in net.named_parameters(remove_duplicate=False)
    }
    ties = {name: source for name, source in shared.items() if name != source}
    return tensors, parts, settings, hooks, ties


def _settings(part: nn.Module) -> JsonObject:
    """The attributes that torch lists as constants, as JSON, except those that only matter in training."""
    names = {*getattr(part, "__constants__", ()), "num_heads"} - IN_TRAINING
    return {
        name: identity(value)
        for name, value in vars(part).items()
        if name in names and isinstance(value, (*PLAIN, tuple, list))
    }


def _kind(part: nn.Module) -> str:
    """The class of a part; torch's batch norms count as one kind, as they evaluate alike."""
    suffix = " with a forward of its own" if "forward" in vars(part) else ""
    if isinstance(part, _BatchNorm) and type(part).__module__.startswith("torch."):
        return f"BatchNorm{suffix}"
    return f"{type(part).__module__}.{type(part).__qualname__}{suffix}"


def _difference(actual: Structure, fresh: Structure) -> str:
    """The first difference in words; empty where nothing differs."""
    kinds = ("tensor", "part", "setting", "forward hook", "shared weight")
    for kind, a, b in zip(kinds, actual, fresh, strict=True):
        for verb, names in (
            ("it has besides", a.keys() - b.keys()),
            ("it lacks", b.keys() - a.keys()),
            ("it has another", {name for name in a.keys() & b.keys() if a[name] != b[name]}),
        ):
            if names:
                more = f" and {len(names) - 1} more" if len(names) > 1 else ""
                return f"{verb} {kind} '{min(names) or 'all of it'}'{more}"
    return ""
