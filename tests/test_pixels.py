"""Every door for pixels: 8 bits are read as data reads them, and what is on another scale is refused."""

import pytest
import torch
from torch import nn

from halfstep.data import Dataset
from halfstep.diffusion.analytic import gaussian_teacher
from halfstep.diffusion.denoiser import Denoiser
from halfstep.diffusion.prediction import V
from halfstep.diffusion.samplers import (
    encode as encode_by,
    inpainting,
    noised,
    sample as sample_by,
    sample_with_scheduler,
)
from halfstep.diffusion.schedules import Cosine
from halfstep.diffusion.time_grids import uniform
from halfstep.errors import ConfigError, DataError, HalfstepError
from halfstep.evaluation import digits_features, SampleScorer
from halfstep.evaluation.features.cache import data_features, fingerprint
from halfstep.evaluation.features.registry import Features
from halfstep.evaluation.metrics.drift import measures
from halfstep.evaluation.metrics.fidelity import learning_error, square_errors
from halfstep.evaluation.metrics.memorisation import nearest
from halfstep.methods.autoencoding import psnr
from halfstep.models import build
from halfstep.models.autoencoder.kl import KLCodec
from halfstep.models.classifiers.ensemble import Teachers
from halfstep.models.classifiers.feature_cnn import Classifier
from halfstep.models.classifiers.preprocessing import Preprocessing
from halfstep.models.classifiers.registry import build_classifier
from halfstep.pictures import to_uint8
from halfstep.pipeline import Pipeline
from halfstep.pixels import as_bytes, scaled
from tests.support.denoisers import seeded

N, SHAPE = 9, (1, 8, 8)


class Halves:
    """A user's own codec, which looks at nothing: means of 2 x 2 pixels."""

    scale, factor, channels = 1.5, 2, 1

    def moments(self, images):
        mean = nn.functional.avg_pool2d(images, 2)
        return torch.cat([mean, torch.zeros_like(mean)], 1)

    def decode(self, latents):
        return (latents / self.scale).repeat_interleave(2, 2).repeat_interleave(2, 3)


def pipeline(shape=SHAPE, **more):
    torch.manual_seed(3)
    config = {"img_size": shape[1], "patch_size": 2, "in_chans": shape[0], "embed_dim": 12, "depth": 2,
              "num_heads": 2}  # fmt: skip
    return Pipeline(Denoiser(build("uvit", config), Cosine(), V()).freeze(), shape, **more)


def kl_codec():
    torch.manual_seed(0)
    config = {"in_channels": 1, "out_channels": 1, "block_out_channels": (4, 4), "latent_channels": 2,
              "norm_num_groups": 2, "layers_per_block": 1}  # fmt: skip
    return KLCodec.fresh(config, 0.5).eval()


def classifier(**preprocessing):
    torch.manual_seed(1)
    before = Preprocessing(**preprocessing)
    return build_classifier("cnn", {"width": 4}, preprocessing=before).eval()


PIXELS, LATENT, OWN = (
    pipeline(),
    pipeline((2, 4, 4), codec=kl_codec()),
    pipeline((1, 4, 4), codec=Halves()),
)
MASK = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
MASK[..., 4:] = True
TEACHER = gaussian_teacher(Cosine())
REAL = torch.rand(N, *SHAPE, generator=seeded(4)) * 2 - 1
FLAT = Features("as they are", lambda x: x.flatten(1), digest="flat")

VALUES = {  # these look at values as well
    "sample": lambda x: PIXELS.sample(N, images=x, strength=0.5, steps=2),
    "sample, a part kept": lambda x: PIXELS.sample(N, images=x, mask=MASK, steps=2),
    "sample of latents": lambda x: LATENT.sample(N, images=x, strength=0.5, steps=2),
    "sample of latents, a part kept": lambda x: LATENT.sample(N, images=x, mask=MASK, steps=2),
    "sample by an own codec": lambda x: OWN.sample(N, images=x, strength=0.5, steps=2),
    "encode": lambda x: PIXELS.encode(x, steps=2),
    "encode to latents": lambda x: LATENT.encode(x, steps=2),
    "encode by an own codec": lambda x: OWN.encode(x, steps=2),
    "codec": lambda x: LATENT.codec.moments(x),
    "features": lambda x: digits_features()(x),
    "own features": lambda x: FLAT(x),
    "features of data": lambda x: data_features(FLAT, x, cache=None),
    "a judge's references": lambda x: SampleScorer(FLAT, x, n=2).real_features,
}  # fmt: skip
KINDS = {  # and these at what kind they are of
    "training of a codec": lambda x: LATENT.codec(x, torch.zeros(N, 2, 4, 4))[1],
    "classifier": classifier(),
    "preprocessing": classifier(mean=(0.3,), std=(0.2,)),
    "larger": classifier(resize=16),
    "classifier of the features": Classifier(1, 10, 8),
    "teachers": Teachers(classifier()),
    "fidelity": lambda x: square_errors(x, REAL),
    "fidelity, the other": lambda x: square_errors(REAL, x),
    "psnr": lambda x: psnr(REAL, x),
    "drift": lambda x: measures(x)["brightness"],
    "memorisation": lambda x: nearest(REAL, x),
    "pictures": lambda x: torch.as_tensor(to_uint8(x)),
    "the loop, from data": lambda x: encode_by(TEACHER, x, uniform(2)),
    "noised": lambda x: noised(Cosine(), x, REAL, 0.5),
    "kept": lambda x: sample_by(
        TEACHER, REAL, uniform(2), inpainting(_first, torch.zeros_like(MASK), x, REAL)
    ),
}  # fmt: skip
DOORS = VALUES | KINDS


def _first(x, seen, to, look):
    return x


def bytes_of(*shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=seeded(2))


def every(doors):
    return pytest.mark.parametrize("door", doors.values(), ids=doors)


def test_the_formula():
    every_byte = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(scaled(every_byte), every_byte.float() / 127.5 - 1)
    assert every_byte[7] == 7  # they are left alone
    data = Dataset(every_byte.reshape(256, 1, 1, 1))
    assert torch.equal(data.batch(torch.arange(256)).x0.flatten(), scaled(every_byte))


@every(DOORS)
def test_8_bits_are_read_as_data_reads_them(door):
    pixels = bytes_of(N, *SHAPE)
    before = pixels.clone()
    with torch.no_grad():
        got, wanted = door(pixels), door(pixels.float() / 127.5 - 1)
    assert torch.equal(got, wanted) and torch.equal(pixels, before)


@every(DOORS)
@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(N, *SHAPE, dtype=torch.int64),
        torch.ones(N, *SHAPE, dtype=torch.int32),
        torch.ones(N, *SHAPE, dtype=torch.bool),
        torch.zeros(N, *SHAPE, dtype=torch.complex64),
        torch.zeros(N, 8, 8, 1, dtype=torch.uint8),  # channels last
        torch.zeros(N, 8, 8, dtype=torch.uint8),
        torch.zeros(N, 2, 8, 8, dtype=torch.uint8),
        torch.zeros(N, 64, dtype=torch.uint8),
    ],
    ids=lambda x: f"{x.dtype}{list(x.shape)}",
)
def test_what_is_no_image_is_refused(door, images):
    with pytest.raises(HalfstepError, match=r"images|pairs"):
        door(images)


@every({name: door for name, door in DOORS.items() if name != "features of data"})
def test_numpys_arrays_are_named(door):
    with pytest.raises(DataError, match="torch tensor"):
        door(REAL.numpy())


OTHER_SCALES = {
    "to 255": bytes_of(N, *SHAPE).float(),
    "all 255": torch.full((N, *SHAPE), 255.0),
    "half precision": bytes_of(N, *SHAPE).half(),
    "to 2": bytes_of(N, *SHAPE).float() / 127.5,
    "to 65535": bytes_of(N, *SHAPE).double() * 257,
    "to 1": bytes_of(N, *SHAPE).float() / 255,
    "nan": REAL.where(REAL < 0.9, torch.nan),
    "infinite": REAL.where(REAL < 0.9, torch.inf),
    "one infinite": REAL.where(REAL.min() < REAL, -torch.inf),
}


@every(VALUES)
@pytest.mark.parametrize("images", OTHER_SCALES.values(), ids=OTHER_SCALES)
def test_another_scale_is_refused(door, images):
    if (images == 1).any():  # 0 and 1 are both there
        images[0, 0, 0, 0] = 0
    with pytest.raises(DataError, match=r"scale them|expected -1 to 1|nan or infinite"):
        door(images)


@pytest.mark.parametrize("factor", [1.3, 2.0, 127.5, 255.0])
@every({name: door for name, door in VALUES.items() if "feat" not in name and "refer" not in name})
def test_both_signs_on_another_scale_are_refused(door, factor):
    with pytest.raises(DataError, match="scale them"):
        door(factor * REAL.sign())


@every(VALUES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_floats_are_read(door, dtype):
    got = door(REAL.to(dtype)).float()
    torch.testing.assert_close(got, door(REAL).float(), rtol=0.1, atol=0.1)


@every(VALUES)
def test_what_rings_over_is_read(door):
    """Resizing and decoders go a little beyond [-1, 1]."""
    assert door((1.2 * REAL).clamp(-1.2, 1.2)).isfinite().all()


@pytest.mark.parametrize("name", [name for name in VALUES if "feat" in name or "refer" in name])
def test_features_see_whatever_a_model_drew(name):
    assert VALUES[name](7 * REAL).isfinite().all()
    assert VALUES[name](torch.zeros(N, *SHAPE)).isfinite().all()


def test_points_and_latents():
    """Points are data in [-1, 1], latents of any range; neither is 8 bits."""
    torch.manual_seed(0)
    points = Pipeline(Denoiser(build("mlp", {"dim": 2, "width": 8}), Cosine(), V()).freeze(), (2,))
    inside = torch.rand(5, 2, generator=seeded()) * 2 - 1
    assert points.sample(5, images=inside, strength=0.5, steps=2).shape == (5, 2)
    assert points.encode(inside.double(), steps=2).dtype == torch.float32
    assert points.encode(5 * inside, steps=2).isfinite().all()  # what a model drew is cut nowhere
    for bad in (inside * 255, (inside * 9).long(), (inside > 0).byte(), inside / 0):
        for door in (points.encode, lambda x: points.sample(5, images=x, strength=0.5)):
            with pytest.raises(DataError):
                door(bad)
    latents = pipeline((4, 4, 4))
    far = 5 * torch.randn(3, 4, 4, 4, generator=seeded())
    assert latents.encode(far, steps=2).isfinite().all()
    assert latents.sample(3, images=far, strength=0.4, steps=4).isfinite().all()
    for bad in (far.long(), far.where(far < 9, torch.nan), far.to(torch.uint8)):
        with pytest.raises(DataError):
            latents.encode(bad, steps=2)
    with pytest.raises(ConfigError, match="0 samples need 0 images"):
        PIXELS.encode(torch.tensor(0.5))
    assert PIXELS.encode(torch.empty(0, *SHAPE)).shape == (0, *SHAPE)


def test_data_of_0_to_1_is_refused():
    """As an array on disk is."""
    half = (REAL + 1) / 2
    half[0, 0, 0, :2] = torch.tensor([0.0, 1.0])
    with pytest.raises(DataError, match="expected -1 to 1"):
        Dataset(half)
    Dataset(2 * half - 1)


def test_the_same_images_are_the_same_entry_of_a_cache():
    pixels = bytes_of(N, *SHAPE)
    assert fingerprint(pixels) == fingerprint(scaled(pixels)) == fingerprint(Dataset(pixels))


def test_a_gap_between_two_steps_is_measured_on_the_same_data():
    pixels, times = bytes_of(N, *SHAPE), uniform(4)
    student, teacher = pipeline().denoiser, PIXELS.denoiser
    got = learning_error(student, teacher, times, pixels)
    assert got == learning_error(student, teacher, times, scaled(pixels))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_noise_is_floats(dtype):
    noise = torch.ones(2, *SHAPE, dtype=dtype)
    with pytest.raises(ConfigError, match="floats"):
        PIXELS.sample(2, noise=noise, steps=2)
    generators = [seeded(), seeded()]
    walks = [
        lambda: sample_by(TEACHER, noise, uniform(2)),
        lambda: sample_with_scheduler(
            TEACHER, noise, uniform(2), "DDIMScheduler", generators=generators
        ),
    ]
    for walk in walks:
        with pytest.raises(ConfigError, match="floats"):
            walk()
    latents = torch.ones(2, 2, 4, 4, dtype=dtype)
    with pytest.raises(ConfigError, match="floats"):
        LATENT.codec.decode(latents)


def test_bytes_are_rounded_and_clamped():
    values = torch.tensor(
        [-1.5, -1, 0.5 / 127.5 - 1, 0.6 / 127.5 - 1, 0, 1, 1.5], dtype=torch.float64
    )
    # 0.5 is rounded to the even 0, and 127.5 to 128
    assert as_bytes(values).tolist() == [0, 0, 0, 1, 128, 255, 255]
    assert as_bytes(values).dtype == torch.uint8
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(as_bytes(scaled(every)), every)
