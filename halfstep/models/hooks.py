"""What the parts of a network put out, and a student that is trained on it.

Hooks sit on module objects and only during a forward: names that a wrapper changes do not matter, nothing
is left behind on the network, and a part that runs twice has the last word.
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
    """net(x), and what the parts of these names put out on the way."""
    with capture_outputs([net.get_submodule(name) for name in names]) as found:
        logits: Tensor = net(x)
    seen = dict(zip(names, found, strict=True))
    for name, out in seen.items():
        if out is None:
            raise ConfigError(
                f"the part '{name}' did not run: name one that the network's forward calls"
            )
        if not isinstance(out, Tensor):
            raise ConfigError(
                f"the part '{name}' puts out a {type(out).__name__}: name one that puts out a tensor"
            )
    return logits, seen


@contextmanager
def unchanged(x: Tensor, whose: str) -> Iterator[None]:
    """`ConfigError` if x is another afterwards: others read the same images."""
    before = x._version
    yield
    if x._version != before:
        raise ConfigError(
            f"the {whose} changes the images that it is given, which others read after it: let its first "
            "layer work on a copy (x = x - 0.5 instead of x.sub_(0.5), inplace=False)"
        )


@contextmanager
def capture_outputs(modules: Sequence[nn.Module]) -> Iterator[list[Any]]:
    """While it lasts, a list of what each of these modules put out last; None for one that did not run.

    The last: gradient checkpointing runs a block again.
    """
    found: list[Any] = [None] * len(modules)
    with ExitStack() as hooks:
        for k, module in enumerate(modules):

            def keep(module: nn.Module, given: object, out: Any, k: int = k) -> None:
                found[k] = out

            hooks.callback(module.register_forward_hook(keep).remove)
        yield found


def check_parts(net: nn.Module, names: Sequence[str], whose: str) -> None:
    """`ConfigError` unless the network has parts of these names, which the error lists."""
    there = [name for name, _ in net.named_modules() if name]
    for name in names:
        if name not in there:
            near = get_close_matches(name, there, n=1)
            hint = f"perhaps you meant '{near[0]}'; " if near else ""
            raise ConfigError(
                f"the {whose} has no part '{name}': {hint}it has {', '.join(there[:20])}"
                f"{', ...' if len(there) > 20 else ''}"
            )


class FeatureExtractor(nn.Module):
    """A student, and projections of what its parts put out: (logits, {key: features}).

    watch       the part's name for each key
    projectors  for some of the keys: a module that brings the student's features to the teacher's width.
                Trained and checkpointed with the student, and no part of what is exported, `net`.
    """

    def __init__(
        self, net: nn.Module, watch: Mapping[str, str], projectors: Mapping[str, nn.Module]
    ):
        super().__init__()
        self.net, self.watch = net, dict(watch)
        self.projectors = nn.ModuleDict(dict(projectors))

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        logits, seen = forward_with_features(self.net, list(dict.fromkeys(self.watch.values())), x)
        found = {key: seen[name] for key, name in self.watch.items()}
        for key, projector in self.projectors.items():
            found[key] = projector(found[key])
        return logits, found


class Projected(nn.Module):
    """A student beside the projectors of its features; called, it is the student.

    Trained and checkpointed with it, they are no part of what is saved, `net`.
    """

    def __init__(self, net: nn.Module, projectors: Sequence[nn.Module]):
        super().__init__()
        self.net, self.projectors = net, nn.ModuleList(projectors)

    def forward(self, *given: Any) -> Any:
        return self.net(*given)


def unwrap(student: nn.Module) -> nn.Module:
    """The student itself, without what it was only trained with."""
    return student.net if isinstance(student, FeatureExtractor | Projected) else student


@torch.no_grad()
def shapes(net: nn.Module, names: Sequence[str], x: Tensor) -> dict[str, tuple[int, ...]]:
    """Of what the parts put out for x, which leaves no trace in the network (nor in its statistics)."""
    with evaluating(net):
        return {
            name: tuple(out.shape) for name, out in forward_with_features(net, names, x)[1].items()
        }


def projector(mine: Sequence[int], theirs: Sequence[int]) -> nn.Module:
    """A linear map of channels, from features of this shape to those: a 1 x 1 convolution for images.

    mine, theirs  [B, D], [B, tokens, D] or [B, channels, H, W]
    """
    if len(mine) == 4:
        return nn.Conv2d(mine[1], theirs[1], 1)
    return nn.Linear(mine[-1], theirs[-1])
