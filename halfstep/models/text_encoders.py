"""Texts to the states that a network attends to: CLIP text models and T5 encoders of transformers.

transformers is imported when an encoder is loaded, and not before.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor

from halfstep import storage
from halfstep.config import JsonObject
from halfstep.errors import CheckpointError, ConfigError
from halfstep.identity import sha256_of
from halfstep.schema import SchemaError, validated_partly
from halfstep.storage import checksum

MODELS = {
    "clip": "CLIPTextModel",
    "clip_text_model": "CLIPTextModel",
    "t5": "T5EncoderModel",
}
"""The class that reads it, by the `model_type` of config.json."""
WEIGHTS, SHARDS = "model.safetensors", "model.safetensors.index.json"
MOST_LAYERS = 512


class _Layers(TypedDict, total=False):
    num_hidden_layers: int
    num_layers: int


class _Config(_Layers, total=False):
    """What is known of config.json; transformers looks at the rest."""

    model_type: str
    text_config: JsonObject


class _Index(TypedDict, total=False):
    weight_map: dict[str, str]


VOCABULARY = ("tokenizer.json", "vocab.json", "spiece.model")
"""One of these makes a tokenizer."""
BESIDE = ("merges.txt", "added_tokens.json", "special_tokens_map.json", "tokenizer_config.json")


@dataclass(frozen=True, eq=False, repr=False)
class TextEncoder:
    """A frozen encoder with its tokenizer; `load_texts` makes it.  It is a `Texts`.

    tokens  states of a text, whatever its length: shorter texts are padded, longer ones cut
    masked  padding is hidden from the text, and its own states are zero (T5); otherwise it is
            encoded like text, with the tokenizer's padding token (CLIP)
    files   what it was read from, for `digest`
    """

    model: Any
    tokenizer: Any
    tokens: int
    masked: bool
    files: tuple[Path, ...]

    @property
    def width(self) -> int:
        """Of a state."""
        return int(self.model.config.hidden_size)

    def digest(self) -> str:
        """sha256 of weights, config, tokenizer and `tokens`: a key for states kept on disk."""
        return sha256_of(
            (f"{self.tokens} tokens", *(f"{p.name} {checksum(p)}" for p in self.files))
        )

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """The last hidden states, after the final norm: float32 [B, tokens, width].

        A longer text loses its end; `cut` says which do.  For a network that attends without a mask
        to a CLIP, padding is part of the text, as in U-ViT (Bao et al. 2023, text-to-image), and the
        states are those of a call without a mask.  A T5 was never trained to read padding, which
        would change a text's states with `tokens`: it is masked, and its own states are set to zero,
        so that every padded place says the same to the network, for every text.
        """
        _check_list(texts)
        device = self.model.device
        if not texts:
            return torch.zeros(0, self.tokens, self.width, device=device)
        read = self.tokenizer(
            list(texts),
            padding="max_length",
            max_length=self.tokens,
            truncation=True,
            return_attention_mask=True,
            return_tensors="pt",
        ).to(device)
        mask = read["attention_mask"] if self.masked else None
        states: Tensor = self.model(
            read["input_ids"], attention_mask=mask
        ).last_hidden_state.float()
        return states if mask is None else states.masked_fill(mask[..., None] == 0, 0)

    def cut(self, texts: Sequence[str]) -> list[int]:
        """Which of the texts are longer than `tokens`, start and end included: their indices."""
        _check_list(texts)
        if not texts:
            return []
        read = self.tokenizer(list(texts), padding=False, truncation=False, verbose=False)
        return [k for k, ids in enumerate(read["input_ids"]) if len(ids) > self.tokens]


def load_texts(
    folder: Path | str, *, tokens: int = 77, device: torch.device | str = "cpu"
) -> TextEncoder:
    """The CLIP text model or T5 encoder of a folder, in float32; `halfstep[text]` must be installed.

    folder   what transformers' `save_pretrained` writes (config.json, model.safetensors and the
             tokenizer's files; a whole CLIP or T5 serves too), or a pipeline of diffusers, of which
             `text_encoder` and `tokenizer` are read; nothing is downloaded and no pickle opened
    tokens   states of a text, at least 2; a CLIP has a most (77)
    """
    model_folder, tokenizer_folder = _places(Path(folder).expanduser())
    kind, weights = _kind(model_folder), _weights(model_folder)
    if tokens < 2:
        raise ConfigError(f"a text has a start and an end, got tokens={tokens}: write tokens=77")
    transformers = _transformers()
    with _quiet(transformers), _told(model_folder, "text model"):
        model, missed = getattr(transformers, MODELS[kind]).from_pretrained(
            model_folder,
            use_safetensors=True,
            local_files_only=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    with _quiet(transformers), _told(tokenizer_folder, "tokenizer"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            tokenizer_folder, local_files_only=True, trust_remote_code=False
        )
    _check_whole(model_folder, missed["missing_keys"])
    _check_pair(model.config, tokenizer, tokens, tokenizer_folder)
    read = [tokenizer_folder / name for name in (*VOCABULARY, *BESIDE)]
    files = [model_folder / "config.json", *weights, *filter(Path.is_file, read)]
    model = model.eval().requires_grad_(False).to(device)
    found = TextEncoder(model, tokenizer, tokens, masked=kind == "t5", files=tuple(files))
    with _told(model_folder, "text model"):  # whatever a strange config does, it does it now
        states = found.encode([""])
    if not bool(states.isfinite().all()):
        raise CheckpointError(
            f"the text model in '{model_folder}' gives states that are not finite"
        )
    return found


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
        raise CheckpointError(f"'{path}' cannot be: text_config.{wrong}") from None
    for part in (config, inner):
        for name in _Layers.__annotations__:
            if part.get(name, 0) > MOST_LAYERS:  # they would take for ever to build
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
    """No bars, and no report of the tensors of the vision model or the decoder that are not read."""
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
def _told(folder: Path, what: str) -> Iterator[None]:
    """What transformers and its readers raise, of many kinds, in one sentence."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        said = str(error).strip().partition("\n")[0] or type(error).__name__
        raise CheckpointError(f"the {what} in '{folder}' cannot be read: {said}") from error


def _check_whole(folder: Path, missing: Sequence[str]) -> None:
    """transformers would draw them at random."""
    if names := sorted(missing):
        raise CheckpointError(
            f"'{folder}' lacks {len(names)} tensors of its text model ({', '.join(names[:3])}"
            f"{', ...' if len(names) > 3 else ''}): fetch its weights again"
        )


def _check_pair(config: Any, tokenizer: Any, tokens: int, folder: Path) -> None:
    most = getattr(config, "max_position_embeddings", None)
    if most is not None and tokens > most:
        raise ConfigError(
            f"this CLIP has {most} positions, asked for tokens={tokens}: write tokens={most}"
        )
    if tokenizer.pad_token_id is None:
        raise CheckpointError(
            f"the tokenizer in '{folder}' has no padding token: set pad_token in its "
            "tokenizer_config.json"
        )
    if len(tokenizer) > config.vocab_size:
        raise CheckpointError(
            f"the tokenizer in '{folder}' knows {len(tokenizer)} tokens and the model "
            f"{config.vocab_size}: put the tokenizer there that belongs to it"
        )


def _check_list(texts: Sequence[str]) -> None:
    if isinstance(texts, str):
        raise ConfigError(f"texts come as a list, got the one text {texts!r}: write [{texts!r}]")
