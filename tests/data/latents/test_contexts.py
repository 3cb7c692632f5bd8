"""Named tensors of captions: cached with latents, integers exactly, and read back with their dtypes."""

import gc
import json
from contextlib import nullcontext
from weakref import ref

import pytest
import torch

from halfstep.batch import Cond
from halfstep.data.latents.captions import Captions
from halfstep.data.latents.contexts import bytes_of, Contexts, formats_of, packed, unpacked
from halfstep.data.latents.dataset import open_latents
from halfstep.data.latents.shards import Shards
from halfstep.errors import ConfigError
from halfstep.rng import Draw
from tests.support.conditions import Words
from tests.support.denoisers import seeded
from tests.support.latents import caption_texts, encoded, refused, TinyCodec

SHOWN = [("a", "bc"), (), *(("x" * k,) for k in range(1, 10))]


class Many(Words):
    """Tensors of every kind beside those of `Words`."""

    def on(self, device):
        return nullcontext()

    def release(self):
        pass

    def conditions(self, texts):
        cond, n = super().conditions(texts), torch.tensor([len(text) for text in texts])
        more = {
            "count": n,  # no axis beside the batch's
            "is_long": (n > 1)[:, None].expand(-1, 3),
            "double": n[:, None].double() / 8,
            "small": n[:, None].to(torch.uint8),
        }
        return Cond(encoder_hidden_states=cond.encoder_hidden_states, added={**cond.added, **more})


def captions(texts=None, digest="words"):
    return Captions(texts or Many(), SHOWN, digest)


def test_all_tensors_come_back_with_their_dtypes_integers_exactly(tmp_path):
    encoded(tmp_path / "l", captions=captions(), batch=2)
    latents = open_latents(tmp_path / "l")
    cond, expected = (
        latents.batch(torch.tensor([0, 1, 10, 4])).cond,
        Many().conditions(["a", "", "x" * 9, "xxx"]),
    )
    assert cond.label.tolist() == [0, 1, 1, 1]
    assert cond.added.keys() == expected.added.keys()
    for name, value in {**expected.named()}.items():
        read = cond.named()[name]
        assert read.dtype == value.dtype and read.shape == value.shape
        tolerance = 1e-3 if value.is_floating_point() else 0
        torch.testing.assert_close(read, value, rtol=tolerance, atol=tolerance)
    null = latents.null_context
    assert torch.equal(null.added["encoder_attention_mask"], torch.tensor([[1, 0, 0, 0]]))
    assert null.added["count"].tolist() == [0] and null.label is None


def test_all_tensors_are_of_one_caption(tmp_path):
    encoded(tmp_path / "l", captions=captions())
    drawn = open_latents(tmp_path / "l").training_batch(
        torch.zeros(40, dtype=torch.int64), Draw.all(seeded(), 40)
    )
    counts, masks = drawn.cond.added["count"], drawn.cond.added["encoder_attention_mask"]
    assert set(counts.tolist()) == {1, 2}
    assert torch.equal(masks.sum(1), counts + 1)


def test_the_formats_are_part_of_the_identity(tmp_path):
    encoded(tmp_path / "l", captions=captions())
    about = json.loads((tmp_path / "l" / "latents.json").read_text())
    tensors = about["text"]["tensors"]
    assert tensors["encoder_attention_mask"] == {"shape": [4], "dtype": "int64"}
    assert tensors["count"] == {"shape": [], "dtype": "int64"}
    assert list(tensors) == sorted(tensors)
    assert not encoded(tmp_path / "l", captions=captions())
    with refused(ConfigError, "encoder of texts"):
        encoded(tmp_path / "l", captions=captions(Words()))


def test_only_what_is_wanted_is_read():
    null = Many().conditions([""])
    contexts = Contexts.of(Many().conditions(["a", "bc"]), torch.arange(3), null)
    few = contexts.only({"pooled_projections", "other"})
    assert list(few.rows(torch.tensor([1])).named()) == ["pooled_projections"]
    assert list(few.null.named()) == ["pooled_projections"]
    assert contexts.only(set(null.named())) is contexts
    moved = few.to("meta")
    assert moved.null.added["pooled_projections"].device.type == "meta"


@pytest.mark.parametrize(
    "value, words",
    [
        (torch.full((2, 2), 1e6), "pooled_projections of a text.*float16"),
        (torch.full((2, 2), torch.nan), "pooled_projections of a text"),
        (torch.zeros(2, 3), "other shapes"),
        (torch.zeros(2, 2, dtype=torch.complex64), "complex64"),
    ],
)
def test_tensors_that_cannot_be_kept_are_refused(value, words):
    cond = Words().conditions(["a", "b"])
    wrong = Cond(
        encoder_hidden_states=cond.encoder_hidden_states,
        added={**cond.added, "pooled_projections": value},
    )
    with pytest.raises(ConfigError, match=words):
        packed(wrong, formats_of(cond))


def test_a_row_is_its_tensors_bytes_in_the_order_of_their_names():
    cond = Cond(added={"b": torch.tensor([[1, 2]]), "a": torch.tensor([[0.5, 2.0, 4.0]])})
    formats = formats_of(cond)
    rows = packed(cond, formats)
    assert bytes_of(formats) == rows.shape[1] == 3 * 2 + 2 * 8
    assert rows[0, :6].view(torch.float16).tolist() == [0.5, 2.0, 4.0]
    assert rows[0, 6:].clone().view(torch.int64).tolist() == [1, 2]
    assert {k: v.tolist() for k, v in unpacked(rows, formats).items()} == {
        "a": [[0.5, 2.0, 4.0]], "b": [[1, 2]],
    }  # fmt: skip
    assert len(Shards((rows,)).rows(torch.tensor([0, 0]))) == 2


# -- encoded once, then free -----------------------------------------------------------------------


class Watched(TinyCodec):
    """Notes at its first image whether the text encoder is still there."""

    def moments(self, images):
        if self.calls == 1:  # the first image is tried before the texts are encoded
            gc.collect()
            self.texts_alive = self.texts() is not None
        return super().moments(images)


def test_the_text_encoder_leaves_memory_before_the_images_are_encoded(tmp_path):
    codec, said = Watched(), captions()
    codec.texts = ref(said.texts)
    assert encoded(tmp_path / "l", codec=codec, captions=said)
    assert codec.texts_alive is False and said.texts is None
    with pytest.raises(ConfigError, match="encoded already"):
        said.packed(["a"])


def test_captions_of_a_finished_folder_leave_memory_too(tmp_path):
    encoded(tmp_path / "l", captions=Captions(Words(), caption_texts(), "words"))
    said = Captions(Words(), caption_texts(), "words")
    assert not encoded(tmp_path / "l", captions=said)
    assert said.texts is None
