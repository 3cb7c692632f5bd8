"""Whether a network still is what its recipe builds: only such a one can be loaded once it is saved."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

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
}
IN_TRAINING = {"p", "dropout", "inplace", "momentum"}


def refuse_wrapped(net: nn.Module) -> None:
    """`ConfigError` for a network that is, or has a part, inside a wrapper that changes its names."""
    for name, part in net.named_modules():
        around = next(
            (kind.__name__ for kind in type(part).__mro__ if kind.__name__ in WRAPPERS), ""
        )
        if isinstance(part, AveragedModel):
            said = "AveragedModel (give its .module, and ema=0.999 averages)"
        elif around:
            said = WRAPPERS[around]
        else:
            continue
        whose = f"its part '{name}'" if name else "this network"
        raise ConfigError(
            f"{whose} is inside {said}: saved under the names that it has there, it could not be loaded"
        )


def refuse_changed_net(net: nn.Module) -> None:
    """`ConfigError` for a network that `build` would no longer make from its recipe."""
    refuse_wrapped(net)
    name, config = recipe(net)
    if not getattr(net, "quantised", None):  # whose tensors are torchao's
        refuse_changed(net, lambda: build_like(net, config), name, draws=":" in name)


def refuse_changed(
    net: nn.Module, fresh: Callable[[], nn.Module], name: str, *, draws: bool = True
) -> None:
    """`ConfigError` for a network with other parts, tensors, settings or hooks than a fresh one has.

    fresh  builds that one; global random generators stay as they are
    name   of the recipe
    draws  whether weights must really be drawn for it: code of a user's own may compute with them, or
           keep some of them
    """
    refuse_wrapped(net)
    if any(map(is_lazy, net.parameters())):
        raise ConfigError(
            "this network has lazy layers, which do not know their sizes yet and could not be loaded: give "
            "all sizes (nn.Linear for nn.LazyLinear)"
        )
    if said := _difference(_look(net), _look(_built(fresh, draws))):
        raise ConfigError(
            f"this {type(net).__name__} is no longer what '{name}' builds: {said}; saved, it could not be "
            "loaded again: build it so by a function of your own, 'package.module:function'"
        )


def _built(fresh: Callable[[], nn.Module], draws: bool) -> nn.Module:
    with fork_rng(), warnings.catch_warnings(action="ignore"):
        if not draws:
            try:
                with torch.device("meta"):
                    return fresh()
            except (RuntimeError, NotImplementedError):  # it looks at what it draws
                pass
        return fresh()


def _look(net: nn.Module) -> tuple[dict[str, Any], ...]:
    """By name: tensors' shapes, parts' kinds and settings, hooks, shared weights by their first."""
    tensors = {
        name: None if is_lazy(value) else tuple(getattr(value, "shape", ()))
        for name, value in net.state_dict(keep_vars=True).items()
    }
    parts, settings, hooks = JsonObject(), JsonObject(), JsonObject()
    for name, part in net.named_modules():
        parts[name] = _kind(part)
        settings |= {f"{name}.{key}".strip("."): value for key, value in _settings(part).items()}
        for hook in (*part._forward_hooks.values(), *part._forward_pre_hooks.values()):
            said = getattr(hook, "__qualname__", type(hook).__qualname__)
            hooks[f"{name}.{said}".strip(".")] = None
    first = dict[int, str]()
    shared = {
        name: first.setdefault(id(value), name)
        for name, value in net.named_parameters(remove_duplicate=False)
    }
    twice = {name: one for name, one in shared.items() if name != one}
    return tensors, parts, settings, hooks, twice


def _settings(part: nn.Module) -> JsonObject:
    """What torch says is constant in it, as JSON: but for what matters in training alone."""
    named = {*getattr(part, "__constants__", ()), "num_heads"} - IN_TRAINING
    return {
        name: identity(value)
        for name, value in vars(part).items()
        if name in named and isinstance(value, (*PLAIN, tuple, list))
    }


def _kind(part: nn.Module) -> str:
    """Batch norms compute alike once they are trained, also over several processes."""
    own = " with a forward of its own" if "forward" in vars(part) else ""
    if isinstance(part, _BatchNorm) and type(part).__module__.startswith("torch."):
        return f"BatchNorm{own}"
    return f"{type(part).__module__}.{type(part).__qualname__}{own}"


def _difference(mine: tuple[dict[str, Any], ...], theirs: tuple[dict[str, Any], ...]) -> str:
    """In words; empty where there is none."""
    kinds = ("tensor", "part", "setting", "forward hook", "shared weight")
    for what, own, other in zip(kinds, mine, theirs, strict=True):
        both = own.keys() & other.keys()
        for how, names in (
            ("it has besides", own.keys() - other.keys()),
            ("it lacks", other.keys() - own.keys()),
            ("it has another", {name for name in both if own[name] != other[name]}),
        ):
            if names:
                more = f" and {len(names) - 1} more" if len(names) > 1 else ""
                return f"{how} {what} '{min(names) or 'all of it'}'{more}"
    return ""
