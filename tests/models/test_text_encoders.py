"""Texts to states: tiny CLIP and T5 encoders, made here, against transformers' own calls."""

import json
import runpy
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPTextModel,
    T5EncoderModel,
)
from transformers.utils import logging

import halfstep.models.text_encoders
from halfstep.errors import CheckpointError, ConfigError
from halfstep.models.text_encoders import load_texts
from tests.support.texts import (
    A,
    CAT,
    clip,
    clip_tokenizer,
    END,
    PIECES,
    START,
    t5,
    whole_clip,
    WORDS,
)

TEXTS = ["a cat", "", "a cat a cat", "cat", "a zebra"]


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    return clip(tmp_path_factory.mktemp("text") / "clip")


@pytest.fixture
def folder(clip_folder, tmp_path):
    """A copy of the CLIP, to be damaged."""
    return shutil.copytree(clip_folder, tmp_path / "clip")


@pytest.fixture(scope="module")
def t5_folder(tmp_path_factory):
    return t5(tmp_path_factory.mktemp("text") / "t5")


@pytest.fixture
def t5_copy(t5_folder, tmp_path):
    return shutil.copytree(t5_folder, tmp_path / "t5")


# -- states ----------------------------------------------------------------------------------------


def test_clip_states_are_those_of_an_unmasked_call(clip_folder):
    """Its ids by hand, padded with its own token to `tokens`; the states are after the final norm."""
    ids = [[START, A, CAT, END, END, END, END], [START, END, END, END, END, END, END]]
    with torch.no_grad():
        expected = CLIPTextModel.from_pretrained(clip_folder)(torch.tensor(ids)).last_hidden_state
    texts = load_texts(clip_folder, tokens=7)
    states = texts.conditions(["A  cat", ""]).encoder_hidden_states
    torch.testing.assert_close(states, expected, rtol=0, atol=1e-6)
    assert (states[0, 4:] - states[1, 4:]).abs().amax(1).min() > 1e-3, "padding has read the text"


@pytest.mark.parametrize("tokens", [6, 9])
def test_t5_states_are_those_of_the_text_alone_and_padding_is_zero(t5_folder, tokens):
    a, cat, end = PIECES.index("▁a"), PIECES.index("▁cat"), PIECES.index("</s>")
    model = T5EncoderModel.from_pretrained(t5_folder)
    states = (
        load_texts(t5_folder, tokens=tokens)
        .conditions(["a cat", "", "a cat a cat cat"])
        .encoder_hidden_states
    )
    for got, ids in zip(states, ([a, cat, end], [end], [a, cat, a, cat, cat, end]), strict=True):
        with torch.no_grad():
            expected = model(torch.tensor([ids])).last_hidden_state[0]
        torch.testing.assert_close(got[: len(ids)], expected, rtol=0, atol=2e-6)
        assert torch.equal(got[len(ids) :], torch.zeros(tokens - len(ids), 32))


@pytest.mark.parametrize("kind", ["clip_folder", "t5_folder"])
def test_what_comes_back(kind, request):
    texts = load_texts(str(request.getfixturevalue(kind)), tokens=10)
    states = texts.conditions(TEXTS).encoder_hidden_states
    assert states.shape == (5, 10, 32) and states.dtype == torch.float32
    assert (texts.tokens, texts.width) == (10, 32)
    assert not states.requires_grad and not texts.model.training
    for k, text in enumerate(TEXTS):
        torch.testing.assert_close(
            texts.conditions([text]).encoder_hidden_states, states[k : k + 1], rtol=0, atol=2e-6
        )
    assert len({tuple(row.flatten().tolist()) for row in states}) == 5
    assert texts.conditions([]).encoder_hidden_states.shape == (0, 10, 32) and texts.cut([]) == []
    assert torch.equal(texts.conditions(tuple(TEXTS)).encoder_hidden_states, states)


def test_weights_in_half_are_read_as_float32_whatever_the_default(folder):
    model = CLIPTextModel.from_pretrained(folder)
    model.half().save_pretrained(folder)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        texts = load_texts(folder, tokens=7)
        states = texts.conditions(["a cat"]).encoder_hidden_states
    finally:
        torch.set_default_dtype(before)
    assert {p.dtype for p in texts.model.parameters()} == {torch.float32}
    ids = torch.tensor([[START, A, CAT, END, END, END, END]])
    with torch.no_grad():
        expected = model.float()(ids).last_hidden_state
    torch.testing.assert_close(states, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("tokens", [2, 3, 4, 5, 11])
def test_a_longer_text_loses_its_end_and_is_told_of(clip_folder, tokens):
    """The end token stays; start and end count."""
    texts = load_texts(clip_folder, tokens=tokens)
    captions = ["cat " * n for n in (0, 1, 2, 3, 20)]
    states = texts.conditions(captions).encoder_hidden_states
    for k, n in enumerate((0, 1, 2, 3, 20)):
        ids = [START, *[CAT] * min(n, tokens - 2)] + [END] * (tokens - 1 - min(n, tokens - 2))
        with torch.no_grad():
            expected = texts.model(torch.tensor([ids])).last_hidden_state[0]
        torch.testing.assert_close(states[k], expected, rtol=0, atol=1e-6)
    assert texts.cut(captions) == [k for k, n in enumerate((0, 1, 2, 3, 20)) if n + 2 > tokens]


def test_a_text_that_just_fits_a_t5(t5_folder):
    texts = load_texts(t5_folder, tokens=4)
    fits, cut = "a a cat", "a a cat cat"
    assert texts.cut([cut, fits, "", cut]) == [0, 3]
    assert torch.equal(
        texts.conditions([fits]).encoder_hidden_states,
        texts.conditions([cut]).encoder_hidden_states,
    )


# -- folders ---------------------------------------------------------------------------------------


def test_a_pipeline_of_diffusers(folder, tmp_path):
    states, pipe = (
        load_texts(folder, tokens=6).conditions(TEXTS).encoder_hidden_states,
        tmp_path / "pipe",
    )
    (pipe / "text_encoder").mkdir(parents=True)
    (pipe / "tokenizer").mkdir()
    digest = load_texts(folder, tokens=6).digest()
    for path in folder.iterdir():
        name = "tokenizer" if path.name.startswith("tokenizer") else "text_encoder"
        path.rename(pipe / name / path.name)
    texts = load_texts(pipe, tokens=6)
    assert (
        torch.equal(texts.conditions(TEXTS).encoder_hidden_states, states)
        and texts.digest() == digest
    )
    with pytest.raises(CheckpointError, match=r"no tokenizer in .*text_encoder'"):
        load_texts(pipe / "text_encoder")


def test_a_whole_clip_and_the_names_of_published_files(folder):
    """Published files say `text_model.`, which this transformers does not write for a text model."""
    states = load_texts(folder, tokens=6).conditions(TEXTS).encoder_hidden_states
    weights = folder / "model.safetensors"
    named = {f"text_model.{name}": value for name, value in load_file(weights).items()}
    save_file(named, weights, metadata={"format": "pt"})
    assert torch.equal(load_texts(folder, tokens=6).conditions(TEXTS).encoder_hidden_states, states)

    whole_clip(folder, {name.removeprefix("text_model."): each for name, each in named.items()})
    assert json.loads((folder / "config.json").read_text())["model_type"] == "clip"
    texts = load_texts(folder, tokens=6)
    assert torch.equal(texts.conditions(TEXTS).encoder_hidden_states, states) and texts.width == 32


def test_weights_in_shards(folder):
    states = load_texts(folder, tokens=6).conditions(TEXTS).encoder_hidden_states
    model = CLIPTextModel.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 2
    texts = load_texts(folder, tokens=6)
    assert torch.equal(texts.conditions(TEXTS).encoder_hidden_states, states)
    assert set(shards) < set(texts.files)
    shards[1].unlink()
    with pytest.raises(CheckpointError, match=f"lacks {shards[1].name}"):
        load_texts(folder)


def test_a_t5_with_a_sentencepiece_model_alone(t5_copy):
    """As T5 v1.1 is published."""
    import io

    import sentencepiece

    model, sentences = io.BytesIO(), ["a cat sat on the mat", "the dog runs far", "birds fly away"]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences * 20), model_writer=model, vocab_size=27, pad_id=0, eos_id=1,
        unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    (t5_copy / "tokenizer.json").unlink()
    (t5_copy / "tokenizer_config.json").write_text('{"extra_ids": 0}')
    (t5_copy / "spiece.model").write_bytes(model.getvalue())
    texts = load_texts(t5_copy, tokens=9)
    ids = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()).encode("a cat")
    with torch.no_grad():
        expected = texts.model(torch.tensor([[*ids, 1]])).last_hidden_state[0]
    states = texts.conditions(["a cat"]).encoder_hidden_states[0]
    torch.testing.assert_close(states[: len(ids) + 1], expected, rtol=0, atol=2e-6)
    assert not states[len(ids) + 1 :].any()


def test_loading_says_nothing_and_draws_nothing(folder, t5_folder, capfd):
    """transformers reports tensors that it did not need, such as a vision model's."""
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "visual": torch.zeros(3)}, folder / "model.safetensors")
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    capfd.readouterr()
    torch.manual_seed(3)
    load_texts(folder, tokens=6).cut(["cat " * 99])
    load_texts(t5_folder)
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (level, bars)
    drawn = torch.rand(4)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(4), drawn)


def test_the_digest_names_the_states(folder):
    first = load_texts(folder, tokens=6).digest()
    assert first == load_texts(folder, tokens=6).digest() and len(first) == 64
    (folder / "README.md").write_text("hello")
    assert first == load_texts(folder, tokens=6).digest()
    others = {load_texts(folder, tokens=7).digest()}
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        before = (folder / name).read_bytes()
        if name == "model.safetensors":
            weights = load_file(folder / name)
            weights["embeddings.token_embedding.weight"][3, 5] += 1e-3
            save_file(weights, folder / name)
        else:
            (folder / name).write_bytes(before + b"\n")
        others.add(load_texts(folder, tokens=6).digest())
        (folder / name).write_bytes(before)
    assert len(others | {first}) == 5


# -- refusals --------------------------------------------------------------------------------------


def test_without_transformers_one_sentence(clip_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    runpy.run_path(halfstep.models.text_encoders.__file__)  # imports without it
    with pytest.raises(ConfigError, match=r"pip install 'halfstep\[text\]'"):
        load_texts(clip_folder, tokens=6)


def test_a_name_is_no_folder():
    with pytest.raises(ConfigError, match=r"no folder 'openai/clip-vit"):
        load_texts("openai/clip-vit-large-patch14")


@pytest.mark.parametrize(
    "tokens, message",
    [
        (12, "write tokens=11"),
        (1, "a text has a start and an end, got tokens=1: write tokens=77"),
    ],
)
def test_tokens_that_cannot_be(clip_folder, tokens, message):
    with pytest.raises(ConfigError, match=message):
        load_texts(clip_folder, tokens=tokens)


def test_one_text_is_no_list(clip_folder):
    texts = load_texts(clip_folder, tokens=6)
    for read in (texts.conditions, texts.cut):
        with pytest.raises(ConfigError, match=r"as a list, .* 'cat': write \['cat'\]"):
            read("cat")


def broken(name):
    return lambda folder: (folder / name).unlink()


def other_type(folder):
    (folder / "config.json").write_text('{"model_type": "bert"}')


def no_json(folder):
    (folder / "config.json").write_text("[1]")


def deep(folder):
    (folder / "config.json").write_text('{"a":' * 9999 + "1" + "}" * 9999)


def many_layers(folder):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_hidden_layers": 10**9}))


def bad_type(folder):
    (folder / "config.json").write_text('{"model_type": ["clip"]}')


def no_end(folder):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": None}))


def index_outside(folder):
    (folder / "model.safetensors").unlink()
    named = {"weight_map": {"a": "../model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(named))


def pickled(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def cut_short(folder):
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-100])


def bad_index(folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text("{}")


def one_tensor_less(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["encoder.layers.1.mlp.fc2.bias"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def bad_tokenizer(folder):
    (folder / "tokenizer.json").write_text("{")


def large_tokenizer(folder):
    clip_tokenizer([*WORDS, "more"]).save_pretrained(folder)


def no_padding(folder):
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "pad_token": None}))


def text_config(value):
    def damage(folder):
        (folder / "config.json").write_text(
            json.dumps({"model_type": "clip", "text_config": value, "num_hidden_layers": 2})
        )

    return damage


@pytest.mark.parametrize(
    "damage, message",
    [
        *(
            (text_config({name: wrong}), rf"text_config\.{name} must be a whole number, got ")
            for name, wrong in (("num_hidden_layers", "12"), ("num_layers", [1]), ("num_layers", None))
        ),
        *((text_config(wrong), "text_config must be a table") for wrong in ([1], None, "x")),
        (text_config({"num_layers": 513}), "num_layers = 513, and 512 is the most"),
        (broken("config.json"), "neither config.json nor text_encoder/config.json: name the folder"),
        (broken("tokenizer.json"), "there is no tokenizer in .*vocab.json.*: put its files there"),
        (other_type, "a model of type 'bert': name the folder of a CLIP text model or of a T5"),
        (no_json, "config.json' is damaged: it must be a table"),
        (deep, "config.json' is damaged: it is nested deeper"),
        (many_layers, "text_config|num_hidden_layers = 1000000000"),
        (bad_type, "config.json' is invalid: model_type must be text"),
        (no_end, "the text model in '.*' cannot be read"),
        (index_outside, "names a file outside: '../model.safetensors'"),
        (pickled, "has no model.safetensors, and pickles, .* are never opened: fetch that file"),
        (cut_short, "the text model in '.*' cannot be read: "),
        (bad_index, "model.safetensors.index.json' is damaged"),
        (one_tensor_less, r"lacks 1 tensors of its text model \(.*layers.1.mlp.fc2.bias\)"),
        (bad_tokenizer, "the tokenizer in '.*' cannot be read: "),
        (large_tokenizer, f"knows {len(WORDS) + 1} tokens"),
        (no_padding, "has no padding token: set pad_token"),
    ],
)  # fmt: skip
def test_a_folder_that_will_not_do(folder, damage, message):
    damage(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_texts(folder, tokens=6)
    assert "\n" not in str(caught.value)
