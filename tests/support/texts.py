"""A small CLIP text model and its tokenizer, as transformers writes them."""

import string

import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

LETTERS = string.ascii_lowercase
WORDS = ["<start>", "<end>", *LETTERS, *(f"{c}</w>" for c in LETTERS), "ca", "cat</w>"]
"""A CLIP's vocabulary: letters, letters that end a word, and one word."""
START, END, A, CAT = (WORDS.index(word) for word in ("<start>", "<end>", "a</w>", "cat</w>"))


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
