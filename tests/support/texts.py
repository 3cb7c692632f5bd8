"""Small CLIP and T5 text models and their tokenizers, as transformers writes them."""

import string

import torch
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    T5Config,
    T5ForConditionalGeneration,
    T5Tokenizer,
)

LETTERS = string.ascii_lowercase
WORDS = ["<start>", "<end>", *LETTERS, *(f"{c}</w>" for c in LETTERS), "ca", "cat</w>"]
"""A CLIP's vocabulary: letters, letters that end a word, and one word."""
START, END, A, CAT = (WORDS.index(word) for word in ("<start>", "<end>", "a</w>", "cat</w>"))

PIECES = ["<pad>", "</s>", "<unk>", "▁", "▁a", "▁cat", *LETTERS]
"""A T5's."""


def clip_config(positions=11, **more):
    return CLIPTextConfig(
        vocab_size=len(WORDS), hidden_size=32, intermediate_size=37, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=positions, bos_token_id=START,
        eos_token_id=END, pad_token_id=END, **more,
    )  # fmt: skip


def clip_tokenizer(words=WORDS, **more):
    ids = {word: k for k, word in enumerate(words)}
    special = {"bos_token": "<start>", "eos_token": "<end>", "unk_token": "<end>"}
    merges = [("c", "a"), ("ca", "t</w>")]
    return CLIPTokenizer(
        vocab=ids, merges=merges, model_max_length=5, **{"pad_token": "<end>", **special, **more}
    )


def clip(folder, *, positions=11, seed=0):
    """A tiny CLIP text model and its tokenizer, as transformers saves them."""
    torch.manual_seed(seed)
    lively(CLIPTextModel(clip_config(positions))).save_pretrained(folder)
    clip_tokenizer().save_pretrained(folder)
    return folder


def lively(model):
    """With weights large enough that every token and place shows in the states."""
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn(p.shape))
    return model


def whole_clip(folder, weights=None):
    """A tiny CLIP with its model of images, whose config has that of its text model within."""
    vision = {"hidden_size": 16, "intermediate_size": 17, "num_hidden_layers": 1}
    sides = {"num_attention_heads": 2, "image_size": 8, "patch_size": 4}
    text = clip_config(11 if weights else 77).to_dict()
    config = CLIPConfig(text_config=text, vision_config={**vision, **sides}, projection_dim=8)
    whole = CLIPModel(config)
    if weights:
        whole.text_model.load_state_dict(weights)
    whole.save_pretrained(folder)
    clip_tokenizer().save_pretrained(folder)
    return folder


def t5(folder, *, seed=0):
    """A tiny T5, whole as it is published, with its tokenizer."""
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=len(PIECES) + 3, d_model=32, d_kv=5, d_ff=37, num_layers=2, num_heads=3
    )
    lively(T5ForConditionalGeneration(config)).save_pretrained(folder)
    pieces = [(piece, -float(k > 2) * (3 - len(piece) / 4)) for k, piece in enumerate(PIECES)]
    T5Tokenizer(vocab=pieces, extra_ids=0).save_pretrained(folder)
    return folder
