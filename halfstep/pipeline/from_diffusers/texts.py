"""The text encoders of a diffusers pipeline: its own `encode_prompt`, loaded when it is first needed."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, ExitStack
from inspect import signature
from typing import Any

import torch
from torch import nn, Tensor

from halfstep.batch import Cond
from halfstep.errors import ConfigError
from halfstep.identity import sha256_of
from halfstep.models.codec import on_device
from halfstep.pipeline.from_diffusers.families import Family

AT_ONCE = 32
"""Texts that are encoded at once."""


class PromptEncoder:
    """Encodes prompts as the pipeline does; it is a `Texts`.

    load    makes the pipeline with its encoders, and without its network
    contents  digest of the encoders and tokenizers
    """

    def __init__(self, family: Family, load: Callable[[], Any], contents: Callable[[], str]):
        self.family, self._load, self._contents = family, load, contents
        self._pipeline: Any = None
        self._device: torch.device | str | None = None
        self._moved: ExitStack | None = None

    def conditions(self, texts: Sequence[str]) -> Cond:
        """The states of these texts, and what else their encoders return; one row a text."""
        if isinstance(texts, str):
            raise ConfigError(
                f"texts come as a list, got the one text {texts!r}: write [{texts!r}]"
            )
        if not texts:
            return self.conditions([""])[:0]
        parts = [self._encode(texts[k : k + AT_ONCE]) for k in range(0, len(texts), AT_ONCE)]
        cond = parts[0]
        for part in parts[1:]:
            cond = cond.cat(part)
        return cond

    def null(self) -> Cond:
        """The condition of the branch without a prompt, as the pipeline itself makes it, in one row."""
        negative = {name for name in self.family.prompts if name.startswith("-")}
        if not negative:
            return self.conditions([""])
        returned = self._returned([""], do_classifier_free_guidance=True)
        named = {name.removeprefix("-"): returned[name] for name in negative}
        return self._cond(named)

    @contextmanager
    def on(self, device: torch.device | str) -> Iterator[None]:
        """Inside it the encoders are on this device, from the first text on."""
        self._device = device
        try:
            yield
        finally:
            self._device = None
            self._move_back()

    def release(self) -> None:
        """Free the encoders; the next text loads them again."""
        self._move_back()  # a pipeline in memory stays
        self._pipeline = None

    def digest(self) -> str:
        """The key of cached states: of the encoders' contents, wherever they lie."""
        return sha256_of((self._contents(), repr(self.family)))

    def _encode(self, texts: Sequence[str]) -> Cond:
        return self._cond(self._returned(list(texts), do_classifier_free_guidance=False))

    @torch.no_grad()
    def _returned(self, texts: list[str], *, do_classifier_free_guidance: bool) -> dict[str, Any]:
        """What `encode_prompt` returns, by the family's names."""
        pipeline = self._loaded()
        options: dict[str, Any] = {"device": _device_of(pipeline), "num_images_per_prompt": 1}
        if "do_classifier_free_guidance" in signature(pipeline.encode_prompt).parameters:
            options["do_classifier_free_guidance"] = do_classifier_free_guidance
        values = pipeline.encode_prompt(texts, **options, **self.family.options)
        if len(values) != len(self.family.prompts):
            raise ConfigError(
                f"encode_prompt returns {len(values)} values, and prompts of the family names "
                f"{len(self.family.prompts)}: name each, or write '' for one that is not needed"
            )
        named = zip(self.family.prompts, values, strict=True)
        return {name: v if v is None else v.cpu() for name, v in named if name}

    def _loaded(self) -> Any:
        """The pipeline, its encoders on the device of `on`."""
        if self._pipeline is None:
            self._pipeline = self._load()
        if self._device is not None and self._moved is None:
            self._moved = ExitStack()
            for net in _encoders(self._pipeline):
                self._moved.enter_context(on_device(net, self._device))
        return self._pipeline

    def _move_back(self) -> None:
        if self._moved is not None:
            self._moved.close()
        self._moved = None

    def _cond(self, named: dict[str, Any]) -> Cond:
        tensors = {name: named[name] for name in self.family.conditions}
        states = tensors.pop("encoder_hidden_states").float()
        for name, value in tensors.items():
            if value is None:  # a mask that hides nothing
                tensors[name] = torch.ones(states.shape[:2], dtype=torch.int64)
            elif value.is_floating_point():
                tensors[name] = value.float()
        if self.family.tokens:
            states = _padded(states, self.family.tokens)
            tensors = {name: _padded(value, self.family.tokens) for name, value in tensors.items()}
        return Cond(None, states, added=tensors)


def _encoders(pipeline: Any) -> list[nn.Module]:
    """The text encoders among the parts of a pipeline of diffusers."""
    parts = pipeline.components.items()
    return [
        part for k, part in parts if k.startswith("text_encoder") and isinstance(part, nn.Module)
    ]


def _device_of(pipeline: Any) -> torch.device:
    """The device of a pipeline's text encoders."""
    weights = (next(net.parameters(), None) for net in _encoders(pipeline))
    return next((x.device for x in weights if x is not None), pipeline.device)


def _padded(value: Tensor, tokens: int) -> Tensor:
    """The states or the mask of a text with zeros at its end, to this many tokens."""
    missing = tokens - value.shape[1]
    return torch.cat([value, value.new_zeros(len(value), missing, *value.shape[2:])], dim=1)
