"""The workflow of each model has ComfyUI's nodes."""

from math import exp

import pytest

from halfstep.pipeline.to_comfyui.models import MODELS
from halfstep.pipeline.to_comfyui.sampling import ComfySampling
from halfstep.pipeline.to_comfyui.workflow import workflow
from tests.support.comfyui import nodes_of

SD1, _, SDXL, SD3, _, FLUX = MODELS


@pytest.mark.parametrize("model", MODELS)
def test_every_input_is_a_value_or_an_output(model):
    sampling = ComfySampling(4, "v_prediction" if model.encoders else "")
    used = nodes_of(workflow("a.safetensors", model, sampling, (512, 768)))
    sizes = used["EmptyLatentImage" if model.encoders else "EmptySD3LatentImage"]
    assert (sizes["height"], sizes["width"]) == (512, 768)


def test_flux_has_one_shift_for_all_sizes_and_its_guidance():
    graph = workflow("a.safetensors", FLUX, ComfySampling(4, shift=exp(1.15)), (64, 32), 3.5)
    used = nodes_of(graph)
    shift = used["ModelSamplingFlux"]
    assert shift["max_shift"] == shift["base_shift"] == pytest.approx(1.15)
    assert used["FluxGuidance"]["guidance"] == 3.5
    assert graph[used["KSampler"]["positive"][0]]["class_type"] == "FluxGuidance"
    assert used["DualCLIPLoader"]["type"] == "flux"


@pytest.mark.parametrize(
    ("model", "sampling", "said"),
    [
        (SD1, "eps", True),
        (SD1, "v_prediction", True),
        (SDXL, "eps", False),
        (SDXL, "v_prediction", False),
        (SDXL, "x0", True),
    ],
)
def test_a_node_says_what_the_file_cannot(model, sampling, said):
    used = nodes_of(workflow("a.safetensors", model, ComfySampling(4, sampling), (512, 512)))
    assert ("ModelSamplingDiscrete" in used) == said
    assert not said or used["ModelSamplingDiscrete"]["sampling"] == sampling


@pytest.mark.parametrize("model", [SD1, SDXL, SD3, FLUX])
def test_a_lora_is_loaded_onto_the_base_and_a_node_says_what_it_predicts(model):
    """The base's file says what the base predicts, which the LoRA may have changed."""
    sampling = ComfySampling(4, "v_prediction" if model.encoders else "")
    graph = workflow("base.safetensors", model, sampling, (512, 512), lora="fast.safetensors")
    used = nodes_of(graph)
    lora = used["LoraLoaderModelOnly"]
    assert (lora["lora_name"], lora["strength_model"]) == ("fast.safetensors", 1.0)
    loader = "CheckpointLoaderSimple" if model.encoders else "UNETLoader"
    assert graph[lora["model"][0]]["class_type"] == loader
    [sampled] = [name for name in used if name.startswith("ModelSampling")]
    assert graph[used[sampled]["model"][0]]["class_type"] == "LoraLoaderModelOnly"
    assert graph[used["KSampler"]["model"][0]]["class_type"] == sampled
