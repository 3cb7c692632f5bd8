"""A pipeline of diffusers read in half precision: the same samples from half the bytes, and nothing saved."""

import threading
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from halfstep import Pipeline
from halfstep.errors import CheckpointError, ConfigError
from halfstep.identity import digest_of
from halfstep.models.half_storage import CAST
from halfstep.pipeline.from_diffusers.weights import _without_weights, half_network
from halfstep.pipeline.lora_base import digest_of_float32, digest_of_origin
from halfstep.workflows.live_bytes import LiveBytes
from tests.support.families import ddpm_pipeline, FAMILIES, PROMPTED, SIZED, TEXTS

FAST = ("ddpm", "dit", "stable-diffusion", "flux")
UNET = "unet/diffusion_pytorch_model.safetensors"


def samples(pipeline, name):
    prompts = {"prompts": TEXTS} if name in PROMPTED else {}
    return pipeline.sample(2, steps=2, latents=True, **prompts)


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # Flux's norms
@pytest.mark.parametrize(
    "name, dtype",
    [
        pytest.param(name, dtype, marks=[] if name in FAST else pytest.mark.slow)
        for name in FAMILIES
        for dtype in (torch.bfloat16, torch.float16)
    ],
)
def test_samples_are_to_the_bit_those_of_float32_weights_under_autocast(name, dtype, tmp_path):
    FAMILIES[name]().save_pretrained(tmp_path)
    whole = Pipeline.from_diffusers(tmp_path, size=SIZED.get(name), dtype=torch.float32)
    half = Pipeline.from_diffusers(tmp_path, size=SIZED.get(name), dtype=dtype)
    assert half.describe() == whole.describe()
    assert whole.denoiser.autocast is None and half.denoiser.autocast == dtype
    for module in half.denoiser.net.modules():
        for p in module._parameters.values():
            assert p is None or p.dtype == (dtype if type(module) in CAST else torch.float32)
    assert {p.dtype for p in whole.denoiser.parameters()} == {torch.float32}
    assert not half.denoiser.training and not any(b.is_meta for b in half.denoiser.buffers())
    whole.denoiser.autocast = dtype
    torch.testing.assert_close(
        samples(half, name), samples(whole, name), rtol=0, atol=0, equal_nan=True
    )


@pytest.fixture
def folder(tmp_path):
    ddpm_pipeline().save_pretrained(tmp_path / "ddpm")
    return tmp_path / "ddpm"


def test_a_folder_of_fp16_or_of_shards_gives_the_same_weights(folder, tmp_path):
    theirs = ddpm_pipeline()
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="20kB")
    assert len(list((tmp_path / "shards/unet").glob("*.safetensors"))) > 2
    theirs.unet.half()
    theirs.save_pretrained(tmp_path / "fp16", variant="fp16")
    plain = Pipeline.from_diffusers(folder, dtype=torch.bfloat16)
    shards = Pipeline.from_diffusers(tmp_path / "shards", dtype=torch.bfloat16)
    assert digest_of(plain.denoiser) == digest_of(shards.denoiser)
    whole = Pipeline.from_diffusers(tmp_path / "fp16")
    half = Pipeline.from_diffusers(tmp_path / "fp16", dtype=torch.bfloat16)
    assert digest_of_float32(half) == digest_of(whole.denoiser)
    for name, p in half.denoiser.named_parameters():
        assert p.equal(whole.denoiser.get_parameter(name).to(p.dtype))


def test_attention_layers_by_their_names_of_2022_are_read(folder):
    """As google/ddpm-cifar10-32 has them."""
    before = Pipeline.from_diffusers(folder, dtype=torch.bfloat16)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors, path = {}, folder / UNET
    for name, value in load_file(path).items():
        if "attentions" in name:
            for new, earlier in old.items():
                name = name.replace(f".{new}.", f".{earlier}.")
        tensors[name] = value
    assert any(".proj_attn." in name for name in tensors)
    save_file(tensors, path, {"format": "pt"})
    after = Pipeline.from_diffusers(folder, dtype=torch.bfloat16)
    assert digest_of(after.denoiser) == digest_of(before.denoiser)
    assert digest_of_float32(after) == digest_of(Pipeline.from_diffusers(folder).denoiser)


def test_no_more_than_half_the_weights_and_a_tensor_are_in_memory(tmp_path):
    import diffusers

    net = diffusers.UNet2DModel(
        block_out_channels=(128, 128), down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
    )  # fmt: skip
    net.save_pretrained(tmp_path)
    count, largest = (
        sum(p.numel() for p in net.parameters()),
        max(p.numel() for p in net.parameters()),
    )
    del net
    with LiveBytes() as live:
        read, wrong = half_network(diffusers.UNet2DModel, tmp_path, torch.bfloat16)
        now = live.now
    assert not wrong and now <= 2.02 * count
    assert live.peak <= 2.02 * count + 4 * largest < 2.7 * count
    assert sum(p.numel() for p in read.parameters()) == count


class Buffered(nn.Module):
    """With buffers in the file and one of float64 that is computed."""

    def __init__(self):
        super().__init__()
        self.enter, self.norm = nn.Linear(2, 3), nn.BatchNorm1d(3)
        self.register_buffer("table", torch.arange(3, dtype=torch.float64), persistent=False)

    @staticmethod
    def load_config(folder, **options):
        return {}

    @classmethod
    def from_config(cls, config):
        return cls()


def test_buffers_are_read_or_computed_and_in_float32_as_float_makes_them(tmp_path):
    net = Buffered()
    net.norm.running_mean.fill_(0.1)
    net.norm.num_batches_tracked.fill_(7)
    save_file(net.state_dict(), tmp_path / "diffusion_pytorch_model.safetensors")
    read, wrong = half_network(Buffered, tmp_path, torch.bfloat16)
    assert not wrong and read.enter.weight.equal(net.enter.weight.bfloat16())
    for name, buffer in net.float().named_buffers():
        assert read.get_buffer(name).equal(buffer) and read.get_buffer(name).dtype == buffer.dtype


def test_a_network_of_another_thread_has_its_weights():
    made = []
    with _without_weights():
        other = threading.Thread(target=lambda: made.append(nn.Linear(2, 2)))
        other.start()
        other.join()
        mine = nn.BatchNorm1d(2)
    assert not made[0].weight.is_meta
    assert mine.weight.is_meta and not mine.running_mean.is_meta
    assert not nn.Linear(2, 2).weight.is_meta


def test_rounded_weights_are_neither_saved_nor_trained(folder, tmp_path):
    half = Pipeline.from_diffusers(folder, dtype=torch.bfloat16)
    with pytest.raises(ConfigError, match="not saved: load it again without dtype"):
        half.save(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    with pytest.raises(ConfigError, match="and cannot be trained"):
        half.denoiser.trainable_copy()


@pytest.mark.parametrize(
    "source, dtype, message",
    [
        ("folder", torch.float64, "got torch.float64"),
        ("folder", "bf16", "got 'bf16'"),
        ("object", torch.bfloat16, "leave dtype out"),
        ("file.safetensors", torch.bfloat16, "leave dtype out"),
    ],
)
def test_another_dtype_and_a_source_that_is_read_already_are_refused(
    folder, source, dtype, message
):
    place = {"folder": folder, "object": ddpm_pipeline()}.get(source, source)
    with pytest.raises(ConfigError, match=message):
        Pipeline.from_diffusers(place, dtype=dtype)


@pytest.mark.parametrize("change", ["missing", "besides", "shape", "kind"])
def test_weights_that_are_not_the_networks_are_refused(folder, change):
    tensors = load_file(folder / UNET)
    name = "conv_in.weight"
    value = tensors.pop(name)
    if change == "besides":
        tensors |= {name: value, "other.weight": value.clone()}
    elif change != "missing":
        tensors[name] = value[1:] if change == "shape" else value.to(torch.int8)
    save_file(tensors, folder / UNET, {"format": "pt"})
    with pytest.raises(CheckpointError, match="other.weight" if change == "besides" else name):
        Pipeline.from_diffusers(folder, dtype=torch.bfloat16)


def test_the_digest_is_that_of_the_float32_weights_and_only_of_its_own(folder, tmp_path):
    whole = Pipeline.from_diffusers(folder)
    half = Pipeline.from_diffusers(folder, dtype=torch.bfloat16)
    assert digest_of(half.denoiser) != digest_of(whole.denoiser)
    assert digest_of_float32(half) == digest_of_float32(whole) == digest_of(whole.denoiser)
    with pytest.raises(ConfigError, match="are nowhere"):
        digest_of_float32(replace(half, origin=None))
    weight = half.denoiser.net.model.conv_in.weight
    with torch.no_grad():
        weight[0, 0, 0, 0] += 1
    assert not digest_of_origin(half, half.origin)
    with pytest.raises(ConfigError, match="not those in"):
        digest_of_float32(half)
    half = Pipeline.from_diffusers(folder, dtype=torch.bfloat16)
    tensors = load_file(folder / UNET)
    del tensors["conv_out.bias"]
    save_file(tensors, folder / UNET, {"format": "pt"})
    assert not digest_of_origin(half, half.origin)
    folder.rename(tmp_path / "moved")
    with pytest.raises(ConfigError, match="not those in"):
        digest_of_float32(half)
