"""Default sizes: what fits the data, in numbers that were computed by hand."""

import pytest
import torch

import halfstep
from halfstep.data import Dataset
from halfstep.errors import ConfigError
from halfstep.methods import Denoising
from halfstep.methods.diffusion.denoising import DenoisingOptions
from halfstep.models import build
from halfstep.models.uvit.model import UViT
from halfstep.training import TrainingConfig
from halfstep.training.config import TrainingOptions
from halfstep.workflows.default_sizes import completed, default_learning_rate, patch_size
from halfstep.workflows.new_pipeline import fresh_pipeline, NetworkOptions
from halfstep.workflows.options import DataOptions, FolderOptions
from halfstep.workflows.train_denoiser import prepare_denoiser, TrainDenoiserConfig


@pytest.mark.parametrize(
    ("sides", "patch"),
    [
        ((8, 8), 2), ((16, 16), 2), ((28, 28), 2), ((32, 32), 2), ((33, 33), 3), ((48, 48), 3),
        ((64, 64), 4), ((128, 128), 8), ((256, 256), 16), ((30, 40), 5), ((7, 7), 1), ((17, 17), 1),
        ((2, 2), 1), ((6, 6), 1), ((31, 31), 1), ((64, 32), 4),
    ],
)  # fmt: skip
def test_the_smallest_patch_that_leaves_16_to_256(sides, patch):
    assert patch_size(*sides) == patch


@pytest.mark.parametrize(("sides", "size"), [((257, 257), 256), ((97, 97), 96), ((64, 67), 64)])
def test_sides_without_a_patch(sides, size):
    with pytest.raises(ConfigError, match=f"add --size {size}"):
        patch_size(*sides)


@pytest.mark.parametrize(
    ("shape", "n", "width", "depth", "heads"),
    [
        ((1, 8, 8), 1_797, 64, 4, 4),  # digits, as their preset
        ((3, 16, 16), 1_999, 64, 4, 4),
        ((3, 16, 16), 2_000, 128, 6, 4),
        ((3, 32, 32), 19_999, 128, 6, 4),
        ((3, 32, 32), 20_000, 256, 8, 4),
        ((3, 32, 32), 200_000, 512, 12, 8),  # U-ViT-S
        ((3, 64, 64), 100, 64, 4, 4),  # 48 values a patch
        ((3, 128, 128), 100, 256, 8, 4),  # 192
        ((3, 256, 256), 100, 768, 12, 12),  # 768
        ((4, 32, 32), 1_281_167, 512, 12, 8),
    ],
)
def test_the_width_is_by_number_and_holds_a_patch(shape, n, width, depth, heads):
    sizes = completed({}, shape, n)
    assert (sizes["embed_dim"], sizes["depth"], sizes["num_heads"]) == (width, depth, heads)
    assert sizes["embed_dim"] >= shape[0] * sizes["patch_size"] ** 2


def parameters(shape, n):
    """Of the default U-ViT."""
    sides = {"img_size": list(shape[1:]), "in_chans": shape[0]}
    with torch.device("meta"):
        net = UViT(**sides, **completed({}, shape, n))
    return sum(p.numel() for p in net.parameters())


def test_a_folder_of_a_hundred_images_gets_a_network_of_its_size():
    """A block of width D has 12 D^2 + 9 D weights without the biases of qkv; a skip 2 D^2 + D."""
    d, tokens, patch = 64, 65, 12
    blocks = 5 * (12 * d * d + 10 * d) + 2 * (2 * d * d + d)
    rest = tokens * d + patch * (d + d) + d + patch + 2 * d + 3 * (27 + 1)
    assert abs(parameters((3, 16, 16), 100) - blocks - rest) < 0.01 * (blocks + rest)
    assert 250_000 < parameters((3, 16, 16), 100) < 300_000


@pytest.mark.parametrize(
    ("given", "others"),
    [
        ({"embed_dim": 96}, {"patch_size": 2, "depth": 4, "num_heads": 4}),
        ({"embed_dim": 90}, {"num_heads": 3}),
        ({"embed_dim": 32}, {"depth": 4, "num_heads": 4}),
        ({"embed_dim": 1024}, {"depth": 12, "num_heads": 8}),
        ({"depth": 2}, {"embed_dim": 64, "num_heads": 4}),
        ({"patch_size": 8}, {"embed_dim": 256, "depth": 8}),  # 192 values
        ({"num_heads": 2, "conv": False}, {"embed_dim": 64}),
        ({"embed_dim": "wide"}, {"depth": 4}),
    ],
)
def test_what_is_given_stays_and_the_rest_follows(given, others):
    sizes = completed(given, (3, 16, 16), 100)
    assert sizes.items() >= {**given, **others}.items()


def test_a_whole_config_and_points_are_left_alone():
    whole = {"patch_size": 7, "embed_dim": 3, "depth": 1, "num_heads": 2}
    assert completed(whole, (3, 257, 257), 5) == whole and completed({}, (2,), 5) == {}


def images(n=40, side=8):
    return Dataset(torch.rand(n, 1, side, side) * 2 - 1)


def config(out, **options):
    return TrainDenoiserConfig(
        folder=FolderOptions(out=out, device="cpu"), dataset=DataOptions(data="digits"), **options
    )


def test_a_run_takes_them_unless_it_has_its_own(tmp_path):
    run = prepare_denoiser(config(tmp_path / "a"))
    assert (run.training.batch_size, run.method.updates) == (128, 2_900)
    assert run.pipeline.denoiser.net.recipe[1]["embed_dim"] == 64
    method, training = DenoisingOptions(drop_labels=0.1), TrainingOptions(batch_size=64, seed=3)
    run = prepare_denoiser(config(tmp_path / "b", method=method, training=training))
    assert run.training == TrainingConfig(batch_size=64, learning_rate=1e-3, seed=3)
    assert run.method == Denoising(updates=5_700, drop_labels=0.1)
    method, training = Denoising(updates=7), TrainingConfig()
    run = prepare_denoiser(config(tmp_path / "c", method=method, training=training))
    assert (run.method, run.training) == (method, training)


def test_the_api_has_the_defaults_that_it_had():
    assert (Denoising().updates, TrainingConfig().batch_size) == (100_000, 128)
    assert halfstep.TrainingConfig is TrainingConfig


def test_a_network_of_another_size_than_the_data():
    for net, name in (("uvit", "img_size"), ("unet", "sample_size")):
        with pytest.raises(ConfigError, match=f"{name} 32 is another size .*: add --size 32"):
            fresh_pipeline(NetworkOptions(net=net, net_config={name: "32"}), images(), False, 0)
    fresh_pipeline(NetworkOptions(net_config={"img_size": "8"}), images(), False, 0)


def test_patches_that_do_not_divide_the_image():
    with pytest.raises(ConfigError, match=r"img_size.*add --size 32, or .*patch_size 3\)"):
        fresh_pipeline(NetworkOptions(net_config={"patch_size": "4"}), images(side=30), False, 0)


@pytest.mark.parametrize(
    ("width", "rate"),
    [(16, 1e-3), (64, 1e-3), (128, 5e-4), (256, 2.5e-4), (320, 2e-4), (512, 2e-4), (768, 2e-4)],
)
def test_the_learning_rate_falls_with_the_width(width, rate):
    net = build(
        "uvit", {"img_size": 4, "embed_dim": width, "patch_size": 2, "depth": 2, "num_heads": 4}
    )
    assert default_learning_rate(net) == pytest.approx(rate, rel=1e-12)


def test_another_network_has_one_rate():
    assert default_learning_rate(build("mlp", {"dim": 2})) == 3e-4
