"""Text encoders: CLIP text models and T5 encoders of transformers.

transformers is imported only when an encoder is loaded.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor

from halfstep import storage
from halfstep.batch import Cond
from halfstep.config import JsonObject
from halfstep.errors import CheckpointError, ConfigError
from halfstep.identity import sha256_of
from halfstep.models.codec import on_device
from halfstep.schema import SchemaError, validated_partly
from halfstep.storage import checksum

MODELS = {
    "clip": "CLIPTextModel",
    "clip_text_model": "CLIPTextModel",
    "t5": "T5EncoderModel",
}
"""The class of transformers, by the `model_type` of config.json."""
WEIGHTS, SHARDS = "model.safetensors", "model.safetensors.index.json"
MOST_LAYERS = 512


class _Layers(TypedDict, total=False):
    num_hidden_layers: int
    num_layers: int


class _Config(_Layers, total=False):
    """The checked keys of config.json; transformers checks the others."""

    model_type: str
    text_config: JsonObject


class _Index(TypedDict, total=False):
    weight_map: dict[str, str]


VOCABULARY = ("tokenizer.json", "vocab.json", "spiece.model")
"""A tokenizer needs one of these files."""
BESIDE = ("merges.txt", "added_tokens.json", "special_tokens_map.json", "tokenizer_config.json")


@dataclass(frozen=True, eq=False, repr=False)
class TextEncoder:
    """A frozen text encoder with its tokenizer, made by `load_texts`; it is a `Texts`.

    tokens  states of each text: shorter texts are padded, longer ones cut
    masked  whether padding is masked and its states are zero (T5), or encoded like text, with the
            tokenizer's padding token (CLIP)
    files   that it was read from, for `digest`
    """

    model: Any
    tokenizer: Any
    tokens: int
    masked: bool
    files: tuple[Path, ...]

    @property
    def width(self) -> int:
        """The width of a state."""
        return int(self.model.config.hidden_size)

    def digest(self) -> str:
        """sha256 of weights, config, tokenizer and `tokens`: the key of cached states."""
        return sha256_of(
            (f"{self.tokens} tokens", *(f"{p.name} {checksum(p)}" for p in self.files))
        )

    @torch.no_grad()
    def conditions(self, texts: Sequence[str]) -> Cond:
        """The last hidden states, after the final norm: encoder_hidden_states, float32 [B, tokens, width].

        Texts longer than `tokens` lose their end (see `cut`).  A CLIP encodes padding as part of the text,
        without a mask, as in U-ViT (Bao et al. 2023, text-to-image).  A T5 was never trained on padding,
        which would make a text's states depend on `tokens`: its padding is masked, and the states of
        padding are set to zero.
        """
        _check_list(texts)
        device = self.model.device
        if not texts:
            return Cond(
                encoder_hidden_states=torch.zeros(0, self.tokens, self.width, device=device)
            )
        tokenized = self.tokenizer(
            list(texts),
            padding="max_length",
            max_length=self.tokens,
            truncation=True,
            return_attention_mask=True,
            return_tensors="pt",
        ).to(device)
        mask = tokenized["attention_mask"] if self.masked else None
        output = self.model(tokenized["input_ids"], attention_mask=mask)
        states: Tensor = output.last_hidden_state.float()
        if mask is not None:
            states = states.masked_fill(mask[..., None] == 0, 0)
        return Cond(encoder_hidden_states=states)

    def null(self) -> Cond:
        """The condition of the empty text, in one row."""
        return self.conditions([""])

    def on(self, device: torch.device | str) -> AbstractContextManager[None]:
        """Inside it the encoder is on this device."""
        return on_device(self.model, device)

    def release(self) -> None:
        """Nothing: the encoder is freed with its last reference."""

    def cut(self, texts: Sequence[str]) -> list[int]:
        """The indices of the texts that are longer than `tokens`, start and end included."""
        _check_list(texts)
        if not texts:
            return []
        tokenized = self.tokenizer(list(texts), padding=False, truncation=False, verbose=False)
        return [k for k, ids in enumerate(tokenized["input_ids"]) if len(ids) > self.tokens]


def load_texts(
    folder: Path | str, *, tokens: int = 77, device: torch.device | str = "cpu"
) -> TextEncoder:
    """Load a CLIP text model or T5 encoder from a folder, in float32; needs `halfstep[text]`.

    folder   of transformers' `save_pretrained` (config.json, model.safetensors and the tokenizer's files;
             also a whole CLIP or T5), or of a diffusers pipeline with `text_encoder` and `tokenizer`;
             nothing is downloaded and no pickle is opened
    tokens   states of a text, at least 2; at most 77 for a CLIP
    """
    model_folder, tokenizer_folder = _places(Path(folder).expanduser())
    kind, weights = _kind(model_folder), _weights(model_folder)
    if tokens < 2:
        raise ConfigError(f"a text has a start and an end, got tokens={tokens}: write tokens=77")
    transformers = _transformers()
    with _quiet(transformers), _reading(model_folder, "text model"):
        model, missed = getattr(transformers, MODELS[kind]).from_pretrained(
            model_folder,
            use_safetensors=True,
            local_files_only=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    with _quiet(transformers), _reading(tokenizer_folder, "tokenizer"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            tokenizer_folder, local_files_only=True, trust_remote_code=False
        )
    _check_whole(model_folder, missed["missing_keys"])
    _check_pair(model.config, tokenizer, tokens, tokenizer_folder)
    tokenizer_files = [tokenizer_folder / name for name in (*VOCABULARY, *BESIDE)]
    files = [model_folder / "config.json", *weights, *filter(Path.is_file, tokenizer_files)]
    model = model.eval().requires_grad_(False).to(device)
    encoder = TextEncoder(model, tokenizer, tokens, masked=kind == "t5", files=tuple(files))
    with _reading(model_folder, "text model"):  # a wrong config fails here
        states = encoder.conditions([""]).encoder_hidden_states
    if states is None or not bool(states.isfinite().all()):
        raise CheckpointError(
            f"the text model in '{model_folder}' gives states that are not finite"
        )
    return encoder


# -- the folder ------------------------------------------------------------------------------------


def _places(folder: Path) -> tuple[Path, Path]:
    """The folders of the model and of the tokenizer."""
    if not folder.is_dir():
        raise ConfigError(
            f"there is no folder '{folder}', and encoders of texts are read from disk alone: fetch "
            "one first, for example with hf download openai/clip-vit-large-patch14 --local-dir clip, "
            "and name its folder"
        )
    model, tokenizer = folder, folder
    if not (folder / "config.json").is_file():
        model, tokenizer = folder / "text_encoder", folder / "tokenizer"
    if not (model / "config.json").is_file():
        raise CheckpointError(
            f"'{folder}' has neither config.json nor text_encoder/config.json: name the folder of a "
            "CLIP text model, of a T5 encoder or of a pipeline that has one"
        )
    if not any((tokenizer / name).is_file() for name in VOCABULARY):
        raise CheckpointError(
            f"there is no tokenizer in '{tokenizer}' ({', '.join(VOCABULARY)}): put its files there, or "
            "name the folder of the whole pipeline"
        )
    return model, tokenizer


def _kind(folder: Path) -> str:
    """The model's type."""
    path = folder / "config.json"
    config = storage.read_unsealed_json(path, _Config)
    try:
        inner = validated_partly(config.get("text_config", {}), _Layers)
    except SchemaError as wrong:
        raise CheckpointError(f"'{path}' is invalid: text_config.{wrong}") from None
    for part in (config, inner):
        for name in _Layers.__annotations__:
            if part.get(name, 0) > MOST_LAYERS:  # building them would never end
                raise CheckpointError(
                    f"'{path}' says {name} = {part[name]}, and {MOST_LAYERS} is the most that is built"
                )
    kind = config.get("model_type")
    if kind not in MODELS:
        raise CheckpointError(
            f"'{folder}' holds a model of type {kind!r}: name the folder of a CLIP text model or of "
            f"a T5 encoder (model_type {', '.join(MODELS)})"
        )
    return str(kind)


def _weights(folder: Path) -> list[Path]:
    """The files of weights that transformers reads."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / SHARDS).is_file():
        raise CheckpointError(
            f"'{folder}' has no {WEIGHTS}, and pickles, which can run code, are never opened: "
            "fetch that file, or convert the weights with transformers' save_pretrained"
        )
    index = storage.read_unsealed_json(folder / SHARDS, _Index)
    names = set(index.get("weight_map", {}).values())
    if strange := [name for name in names if Path(name).name != name]:
        raise CheckpointError(f"'{folder / SHARDS}' names a file outside: {strange[0]!r}")
    if not names:
        raise CheckpointError(f"'{folder / SHARDS}' is damaged: it lacks weight_map")
    shards = [folder / name for name in sorted(names)]
    if missing := [path.name for path in shards if not path.is_file()]:
        raise CheckpointError(f"'{folder}' lacks {', '.join(missing)}: fetch what is missing")
    return shards


# -- what is in it ---------------------------------------------------------------------------------


def _transformers() -> Any:
    try:
        return import_module("transformers")
    except ImportError:
        raise ConfigError(
            "encoding texts needs transformers, which is not installed: run "
            "pip install 'halfstep[text]'"
        ) from None


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Hide progress bars, and the report of unread tensors (of a vision model or a decoder)."""
    log = transformers.utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()


@contextmanager
def _reading(folder: Path, what: str) -> Iterator[None]:
    """Turn any error of transformers and its readers into one sentence."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise CheckpointError(f"the {what} in '{folder}' cannot be read: {reason}") from error


def _check_whole(folder: Path, missing: Sequence[str]) -> None:
    """Refuse missing tensors, which transformers would draw at random."""
    if names := sorted(missing):
        raise CheckpointError(
            f"'{folder}' lacks {len(names)} tensors of its text model ({', '.join(names[:3])}"
            f"{', ...' if len(names) > 3 else ''}): fetch its weights again"
        )


def _check_pair(config: Any, tokenizer: Any, tokens: int, folder: Path) -> None:
    most = getattr(config, "max_position_embeddings", None)
    if most is not None and tokens > most:
        raise ConfigError(
            f"this CLIP has {most} positions, got tokens={tokens}: write tokens={most}"
        )
    if tokenizer.pad_token_id is None:
        raise CheckpointError(
            f"the tokenizer in '{folder}' has no padding token: set pad_token in its "
            "tokenizer_config.json"
        )
    if len(tokenizer) > config.vocab_size:
        raise CheckpointError(
            f"the tokenizer in '{folder}' knows {len(tokenizer)} tokens and the model "
            f"{config.vocab_size}: put its own tokenizer there"
        )


def _check_list(texts: Sequence[str]) -> None:
    if isinstance(texts, str):
        raise ConfigError(f"texts come as a list, got the one text {texts!r}: write [{texts!r}]")
