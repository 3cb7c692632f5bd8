"""Capture the outputs of a network's parts with hooks, and train a student on them.

Hooks are on the module objects, and only during a forward: names that a wrapper changes do not matter,
nothing is left on the network, and of a part that runs twice the last output counts.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, ExitStack
from difflib import get_close_matches
from typing import Any

import torch
from torch import nn, Tensor

from halfstep.errors import ConfigError
from halfstep.models.eval_mode import evaluating


def forward_with_features(
    net: nn.Module, names: Sequence[str], x: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """net(x), and the outputs of the named parts."""
    with capture_outputs([net.get_submodule(name) for name in names]) as outputs:
        logits: Tensor = net(x)
    features = dict(zip(names, outputs, strict=True))
    for name, out in features.items():
        if out is None:
            raise ConfigError(
                f"the part '{name}' did not run: name one that the network's forward calls"
            )
        if not isinstance(out, Tensor):
            raise ConfigError(
                f"the part '{name}' puts out a {type(out).__name__}: name one that puts out a tensor"
            )
    return logits, features


@contextmanager
def unchanged(x: Tensor, owner: str) -> Iterator[None]:
    """`ConfigError` if the block changes x in place, which other networks read too.

    owner  of the network in the error, as "teacher"
    """
    before = x._version
    yield
    if x._version != before:
        raise ConfigError(
            f"the {owner} changes its input images in place, and others read them after it: let its first "
            "layer work on a copy (x = x - 0.5 instead of x.sub_(0.5), inplace=False)"
        )


@contextmanager
def capture_outputs(modules: Sequence[nn.Module]) -> Iterator[list[Any]]:
    """A list of each module's last output during the block; None for a module that did not run.

    The last one, as gradient checkpointing runs a block again.
    """
    outputs: list[Any] = [None] * len(modules)
    with ExitStack() as hooks:
        for k, module in enumerate(modules):

            def keep(module: nn.Module, inputs: object, out: Any, k: int = k) -> None:
                outputs[k] = out

            hooks.callback(module.register_forward_hook(keep).remove)
        yield outputs


def check_parts(net: nn.Module, names: Sequence[str], owner: str) -> None:
    """`ConfigError` unless the network has parts of these names; the error lists its parts."""
    parts = [name for name, _ in net.named_modules() if name]
    for name in names:
        if name not in parts:
            near = get_close_matches(name, parts, n=1)
            hint = f"perhaps you meant '{near[0]}'; " if near else ""
            raise ConfigError(
                f"the {owner} has no part '{name}': {hint}it has {', '.join(parts[:20])}"
                f"{', ...' if len(parts) > 20 else ''}"
            )


class FeatureExtractor(nn.Module):
    """A student that also returns projected features of its parts: (logits, {key: features}).

    watch       the part's name for each key
    projectors  for some of the keys: a module from the student's features to the teacher's width.  They are
                trained and checkpointed with the student; only `net` is exported.
    """

    def __init__(
        self, net: nn.Module, watch: Mapping[str, str], projectors: Mapping[str, nn.Module]
    ):
        super().__init__()
        self.net, self.watch = net, dict(watch)
        self.projectors = nn.ModuleDict(dict(projectors))

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        names = list(dict.fromkeys(self.watch.values()))
        logits, outputs = forward_with_features(self.net, names, x)
        features = {key: outputs[name] for key, name in self.watch.items()}
        for key, projector in self.projectors.items():
            features[key] = projector(features[key])
        return logits, features


class Projected(nn.Module):
    """A student with the projectors of its features; a call runs the student alone.

    The projectors are trained and checkpointed with it; only `net` is exported.
    """

    def __init__(self, net: nn.Module, projectors: Sequence[nn.Module]):
        super().__init__()
        self.net, self.projectors = net, nn.ModuleList(projectors)

    def forward(self, *inputs: Any) -> Any:
        return self.net(*inputs)


def unwrap(student: nn.Module) -> nn.Module:
    """The student without the projectors of its training."""
    return student.net if isinstance(student, FeatureExtractor | Projected) else student


@torch.no_grad()
def shapes(net: nn.Module, names: Sequence[str], x: Tensor) -> dict[str, tuple[int, ...]]:
    """The shapes of the parts' outputs for x, found in eval mode so that no statistics change."""
    with evaluating(net):
        return {
            name: tuple(out.shape) for name, out in forward_with_features(net, names, x)[1].items()
        }


def projector(source: Sequence[int], target: Sequence[int]) -> nn.Module:
    """A linear map of channels between features of two shapes: a 1 x 1 convolution for images.

    source, target  [B, D], [B, tokens, D] or [B, channels, H, W]
    """
    if len(source) == 4:
        return nn.Conv2d(source[1], target[1], 1)
    return nn.Linear(source[-1], target[-1])
