"""Every network class of diffusers as --net: it is built, or refused in one sentence before anything is."""

import diffusers.models
import pytest
import torch

from halfstep.data import Dataset
from halfstep.errors import HalfstepError
from halfstep.models import build, infer_config
from halfstep.models.network_inputs import INPUTS
from halfstep.workflows.new_pipeline import fresh_pipeline, NetworkOptions

STRUCTURE = diffusers.models._import_structure
CLASSES = sorted({name for names in STRUCTURE.values() for name in names if name[0].isupper()})
IMAGES = Dataset(torch.zeros(4, 3, 8, 8))
TEXTS = ("PixArtTransformer2DModel", "SD3Transformer2DModel", "SanaTransformer2DModel")


@pytest.mark.parametrize("name", CLASSES)
def test_a_network_that_data_do_not_determine_is_refused_in_a_sentence(name):
    with pytest.raises(HalfstepError) as refused:
        fresh_pipeline(NetworkOptions(net=name), IMAGES, False, 0)
    assert "\n" not in str(refused.value) and name in str(refused.value)


def test_those_that_read_texts_have_the_sides_of_the_texts():
    sides = {
        name: infer_config(
            name, (4, 8, 8), text_shape=(7, 32), text_widths={"pooled_projections": 24}
        )
        for name in TEXTS
    }
    assert sides["SD3Transformer2DModel"]["joint_attention_dim"] == 32
    assert sides["SD3Transformer2DModel"]["pooled_projection_dim"] == 24
    assert sides["PixArtTransformer2DModel"]["caption_channels"] == 32
    assert set(TEXTS) < set(INPUTS)
    tiny = {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 8}
    net = build(
        "SD3Transformer2DModel",
        {**sides["SD3Transformer2DModel"], **tiny, "caption_projection_dim": 16},
    )
    assert net.model.config.sample_size == 8
