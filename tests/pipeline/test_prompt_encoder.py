"""The text encoders of a pipeline in memory: where they are while they encode, and afterwards."""

import torch
from torch import nn

from halfstep.models.codec import on_device
from halfstep.pipeline.from_diffusers.families import Family
from halfstep.pipeline.from_diffusers.texts import PromptEncoder


class Moved(nn.Module):
    """An encoder that knows where it was moved; it stays on the CPU."""

    def __init__(self):
        super().__init__()
        self.weight, self.places = nn.Parameter(torch.ones(1)), []

    def to(self, device):
        self.places.append(str(device))
        return self


class InMemory:
    """A pipeline of diffusers with two text encoders, a network and an autoencoder."""

    device = torch.device("cpu")

    def __init__(self):
        self.components = {
            name: Moved() for name in ("text_encoder", "text_encoder_2", "unet", "vae")
        }

    def encode_prompt(self, texts, device, num_images_per_prompt):
        return [torch.ones(len(texts), 2, 3)]


def test_text_encoders_are_on_the_device_while_they_encode_and_go_back():
    pipe = InMemory()
    family = Family(network="unet", prompts=("encoder_hidden_states",))
    texts = PromptEncoder(family, lambda: pipe, lambda: "")
    texts.conditions(["a"])
    assert not any(part.places for part in pipe.components.values())
    with texts.on("meta"):
        texts.conditions(["a"])
        texts.conditions(["b"])
    first, second, *others = (part.places for part in pipe.components.values())
    assert first == second == ["meta", "cpu"] and not any(others)
    with texts.on("meta"):
        texts.conditions(["a"])
        texts.release()
        assert pipe.components["text_encoder"].places == ["meta", "cpu"] * 2
    texts.conditions(["a"])
    assert pipe.components["text_encoder"].places == ["meta", "cpu"] * 2


def test_a_network_goes_back_where_it_was_also_after_an_error():
    net = Moved()
    try:
        with torch.inference_mode(), on_device(net, "meta"):
            assert net.places == ["meta"] and torch.is_inference_mode_enabled()
            raise KeyError
    except KeyError:
        assert net.places == ["meta", "cpu"]
    with on_device(None, "meta"), on_device(nn.Identity(), "meta"):
        pass


class Converted(nn.Linear):
    """A layer that gets new weights as it is moved, as on its way to a GPU."""

    def to(self, device):
        return self.double().float()


def test_a_network_that_was_moved_in_inference_mode_can_still_be_trained():
    net = Converted(2, 2)
    with torch.inference_mode(), on_device(net, "meta"):
        pass
    assert not any(p.is_inference() for p in net.parameters())
