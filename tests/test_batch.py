"""Conditions: those of a subclass are cut, joined, moved and left out with halfstep's own."""

from dataclasses import dataclass, field

import pytest
import torch
from torch import nn, Tensor

from halfstep.batch import Batch, Cond, null_rows
from halfstep.diffusion.denoiser import Denoiser
from halfstep.diffusion.guidance import Guided
from halfstep.diffusion.loss_weighting import WEIGHTINGS
from halfstep.diffusion.prediction import V
from halfstep.diffusion.samplers import sample
from halfstep.diffusion.schedules import Cosine
from halfstep.diffusion.time_grids import uniform
from halfstep.errors import ConfigError
from halfstep.methods.diffusion.denoising import Denoise
from halfstep.methods.diffusion.guided import at_any_scale
from halfstep.models import Adapter, build
from halfstep.rng import Draw


@dataclass(frozen=True)
class Pooled(Cond):
    pooled: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Sized(Pooled):
    """Of a subclass of a subclass, by keyword alone, with all that a field can say of itself."""

    mask: Tensor | None = field(default=None, metadata={"null": True})
    size: Tensor | None = field(default=None, metadata={"null": None})
    style: Tensor | None = field(default=None, metadata={"null": torch.tensor([7.0, 8.0])})
    crop: float = 0.5
    made: str = field(default="late", init=False)


POOLED = torch.arange(12.0).reshape(3, 4) + 1


def sized(**changes):
    given = {
        "label": torch.tensor([1, 2, 3]),
        "pooled": POOLED,
        "mask": torch.tensor([[True, False]] * 3),
        "size": torch.tensor([[64, 32]] * 3),
        "style": torch.ones(3, 2),
    }
    return Sized(**{**given, **changes})


def test_rows_are_cut_of_all_fields():
    half = sized()[1:]
    assert type(half) is Sized and half.label.tolist() == [2, 3]
    assert torch.equal(half.pooled, POOLED[1:]) and half.mask.shape == half.size.shape == (2, 2)
    assert half.encoder_hidden_states is None and half.crop == 0.5 and half.made == "late"


def test_all_fields_are_joined():
    both = sized()[:1].cat(sized()[1:])
    for name in ("label", "pooled", "mask", "size", "style"):
        assert torch.equal(getattr(both, name), getattr(sized(), name))
    assert type(both) is Sized and both.crop == 0.5


def test_all_fields_are_moved():
    moved = sized().to("meta")
    names = ("label", "pooled", "mask", "size", "style")
    assert {getattr(moved, name).device.type for name in names} == {"meta"}


def test_own_fields_are_left_out_with_the_label():
    """Zeros, or what the field names; what names None stays."""
    none = sized().dropped(9)
    assert none.label.tolist() == [9, 9, 9] and not none.pooled.any() and none.mask.all()
    assert torch.equal(none.size, sized().size) and none.style.tolist() == [[7.0, 8.0]] * 3
    assert none.pooled.shape == POOLED.shape and type(none) is Sized


def test_own_fields_are_left_out_with_the_text():
    states = torch.randn(3, 2, 5)
    none = Pooled(encoder_hidden_states=states, pooled=POOLED).dropped(torch.ones(2, 5))
    assert bool((none.encoder_hidden_states == 1).all()) and not none.pooled.any()


def test_own_fields_are_left_out_of_the_samples_that_are_meant():
    some = sized().dropped(9, torch.tensor([False, True, False]))
    assert some.label.tolist() == [1, 9, 3]
    assert torch.equal(some.pooled, POOLED * torch.tensor([[1], [0], [1]]))
    assert some.mask.tolist() == [[True, False], [True, True], [True, False]]


def test_own_fields_alone_can_be_left_out():
    alone = Pooled(pooled=POOLED)
    assert (
        alone.can_drop(9) and not alone.dropped(9).pooled.any() and alone.dropped(9).label is None
    )
    assert (
        not Cond().can_drop(9)
        and not Pooled().can_drop(9)
        and not Cond(guidance_scale=torch.ones(3)).can_drop(9)
    )
    with pytest.raises(ConfigError, match="label"):
        Pooled().dropped(9)


@pytest.mark.parametrize(
    "one, other, word",
    [
        (sized(), sized(pooled=None), "pooled"),
        (sized(pooled=None), sized(), "pooled"),
        (sized(mask=None), sized(), "mask"),
        (Cond(torch.tensor([1])), Pooled(torch.tensor([1]), pooled=POOLED[:1]), "pooled"),
        (Pooled(torch.tensor([1]), pooled=POOLED[:1]), Cond(torch.tensor([1])), "pooled"),
        (Cond(torch.tensor([1])), Cond(encoder_hidden_states=torch.zeros(1, 2, 3)), "label"),
        (sized(pooled=POOLED[:, :3]), sized(), "pooled"),
        (
            Cond(encoder_hidden_states=torch.zeros(1, 2, 3)),
            Cond(encoder_hidden_states=torch.zeros(1, 4, 3)),
            "encoder_hidden_states",
        ),
        (sized(crop=0.25), sized(), "crop"),
    ],
)
def test_conditions_that_do_not_join(one, other, word):
    with pytest.raises(ConfigError, match=word):
        one.cat(other)


@pytest.mark.parametrize("odd", [["a", "b", "c"], (POOLED,), {"a": POOLED}, Cond(POOLED)])
@pytest.mark.parametrize(
    "does", [lambda c: c[:1], lambda c: c.to("cpu"), lambda c: c.cat(c), lambda c: c.dropped(0)]
)
def test_fields_that_may_have_rows_are_refused_by_name(odd, does):
    with pytest.raises(ConfigError, match="pooled"):
        does(Pooled(label=torch.tensor([1, 2, 3]), pooled=odd))


@pytest.mark.parametrize("odd", [torch.tensor(1.0), POOLED[:1], POOLED[:2]])
def test_rows_that_are_not_one_a_sample_are_refused_by_name(odd):
    with pytest.raises(ConfigError, match="pooled"):
        Pooled(label=torch.tensor([1, 2, 3]), pooled=odd)[:1]


def test_a_null_of_another_shape_is_refused_by_name():
    with pytest.raises(ConfigError, match="style"):
        sized(style=torch.ones(3, 3)).dropped(0)


def test_batches_of_a_subclass_keep_what_is_theirs():
    @dataclass(frozen=True)
    class Weighed(Batch):
        weight: Tensor | None = None
        name: str = "all"

    batch = Weighed(torch.zeros(3, 2), sized(), weight=torch.tensor([1.0, 2.0, 3.0]))
    some = batch[1:].to("cpu")
    assert type(some) is Weighed and some.weight.tolist() == [2.0, 3.0] and some.name == "all"
    assert torch.equal(some.cond.pooled, POOLED[1:]) and some.x0.shape == (2, 2)


# --- in the network -----------------------------------------------------------------------------------


class Hears(nn.Module):
    """Puts out what it was told: the mean of the pooled text, and keeps it."""

    def __init__(self):
        super().__init__()
        self.heard, self.weight = [], nn.Parameter(torch.zeros(1))

    def forward(self, x, t, cond):
        self.heard.append(cond)
        return self.weight + torch.zeros_like(x) + cond.pooled.mean(1, keepdim=True)


def hearing():
    net = Hears()
    return net, Denoiser(net, Cosine(), V())


def pooled(rows):
    return Pooled(label=torch.arange(rows), pooled=torch.ones(rows, 4))


def test_guidance_leads_away_from_a_branch_without_them():
    """v = 1 where it is heard and 0 where not: guided by s, it is s."""
    net, denoiser = hearing()
    x, t = torch.randn(3, 2), torch.full((3,), 0.4, dtype=torch.float64)
    prediction = Guided(denoiser, 3.0, 9)(x, t, pooled(3))
    assert net.heard[0].pooled.mean(1).tolist() == [1.0] * 3 + [0.0] * 3
    assert net.heard[0].label.tolist() == [0, 1, 2, 9, 9, 9]
    level = denoiser.level(t, x)
    torch.testing.assert_close(V().encode(prediction, level), torch.full((3, 2), 3.0))


def test_a_walk_hears_them():
    net, denoiser = hearing()
    sample(Guided(denoiser, 2.0, 9), torch.randn(3, 2), uniform(2), cond=pooled(3))
    assert len(net.heard) == 2 and all(cond.pooled.shape == (6, 4) for cond in net.heard)


@pytest.mark.parametrize("drop, kept", [(1.0, 0), (0.0, 5), (0.5, None)])
def test_training_drops_them_with_the_label(drop, kept):
    net, denoiser = hearing()
    draw = Draw.all(torch.Generator().manual_seed(0), 5)
    objective = Denoise(Cosine(), WEIGHTINGS["snr+1"], None, drop, 9)
    objective(denoiser, Batch(torch.randn(5, 2), pooled(5)), draw)
    heard = net.heard[0]
    assert torch.equal(heard.pooled.any(1), heard.label != 9)
    if kept is None:
        assert 0 < int(heard.pooled.any(1).sum()) < 5
    else:
        assert int(heard.pooled.any(1).sum()) == kept


def test_training_drops_them_where_there_is_no_label():
    net, denoiser = hearing()
    draw = Draw.all(torch.Generator().manual_seed(0), 5)
    cond = Pooled(pooled=torch.ones(5, 4))
    Denoise(Cosine(), WEIGHTINGS["snr+1"], None, 1.0, 9)(
        denoiser, Batch(torch.randn(5, 2), cond), draw
    )
    assert not net.heard[0].pooled.any()


def test_a_student_of_any_scale_hears_them():
    from halfstep.methods.stages import Stage

    net, denoiser = hearing()
    objective = Denoise(Cosine(), WEIGHTINGS["snr+1"])
    stage = at_any_scale(Stage("", denoiser, objective, 1), (1.0, 2.0))
    draw = Draw.all(torch.Generator().manual_seed(0), 5)
    stage.objective(denoiser, Batch(torch.randn(5, 2), pooled(5)), draw)
    assert type(net.heard[0]) is Pooled and net.heard[0].guidance_scale.shape == (5,)


def test_an_adapter_that_does_not_read_them_refuses_them():
    class Mine(Adapter):
        reads = ("label", "pooled")

        def forward(self, x, t, cond=None):
            self.label(cond)
            return self.model(cond.pooled)

    net = build("mlp", {"width": 8, "depth": 1, "num_classes": 3})
    x, t = torch.randn(3, 2), torch.zeros(3)
    with pytest.raises(ConfigError, match="pooled"):
        net(x, t, pooled(3))
    assert Mine(nn.Linear(4, 2), 3)(x, t, pooled(3)).shape == (3, 2)


def named(**changes):
    """A condition as a network of SDXL reads it."""
    tensors = {"text_embeds": POOLED, "time_ids": torch.tensor([[64, 32]] * 3)}
    return Cond(encoder_hidden_states=torch.randn(3, 2, 5), added={**tensors, **changes})


NULL = Cond(
    encoder_hidden_states=torch.ones(1, 2, 5), added={"text_embeds": torch.full((1, 4), 9.0)}
)


def test_named_tensors_are_cut_joined_and_moved():
    cond = named()
    half, both = cond[1:], cond[:1].cat(cond[1:])
    assert (
        torch.equal(half.added["text_embeds"], POOLED[1:]) and len(half.encoder_hidden_states) == 2
    )
    assert torch.equal(both.added["text_embeds"], POOLED) and both.added["time_ids"].shape == (3, 2)
    assert {value.device.type for value in cond.to("meta").added.values()} == {"meta"}
    assert torch.equal(cond.added["text_embeds"], POOLED)  # the first is as before


def test_named_tensors_become_what_the_null_condition_names():
    cond = named()
    none = cond.dropped(NULL)
    assert bool((none.added["text_embeds"] == 9).all() and (none.encoder_hidden_states == 1).all())
    assert torch.equal(none.added["time_ids"], cond.added["time_ids"])  # not named: as before
    some = cond.dropped(NULL, torch.tensor([False, True, False]))
    assert some.added["text_embeds"][:, 0].tolist() == [POOLED[0, 0], 9, POOLED[2, 0]]
    assert torch.equal(some.encoder_hidden_states[0], cond.encoder_hidden_states[0])


def test_a_null_condition_may_have_a_row_a_sample():
    negative = Cond(encoder_hidden_states=torch.arange(30.0).reshape(3, 2, 5))
    none = named().dropped(negative)
    assert torch.equal(none.encoder_hidden_states, negative.encoder_hidden_states)
    assert torch.equal(
        null_rows(negative, slice(1, 2)).encoder_hidden_states, negative[1:2].encoder_hidden_states
    )
    assert null_rows(NULL, slice(1, 2)) is NULL and null_rows(3, slice(1, 2)) == 3
    with pytest.raises(ConfigError, match="encoder_hidden_states"):
        named().dropped(negative[:2])


@pytest.mark.parametrize(
    "wrong, word",
    [
        ({"label": POOLED}, "label"),
        ({"text_embeds": 3}, "text_embeds"),
        ({"text_embeds": POOLED[:2]}, "text_embeds"),
    ],
)
def test_named_tensors_that_are_none_are_refused_by_name(wrong, word):
    with pytest.raises(ConfigError, match=word):
        named(**wrong)[:1]


def test_guidance_drops_all_that_the_null_names():
    """At scale s each branch reads its own named tensors."""

    class Reads(nn.Module):
        def forward(self, x, t, cond=None):
            return (
                x * 0
                + cond.added["text_embeds"].mean(1)[:, None]
                + cond.encoder_hidden_states.mean((1, 2))[:, None]
            )

    denoiser, cond = Denoiser(Reads(), Cosine(), V()), named()
    x, t = torch.randn(3, 2), torch.full((3,), 0.5)
    guided = Guided(denoiser, 3.0, NULL)(x, t, cond)
    expected = denoiser(x, t, cond.dropped(NULL)).toward(denoiser(x, t, cond), 3.0)
    torch.testing.assert_close(guided.x0, expected.x0)
    assert not torch.allclose(guided.x0, denoiser(x, t, cond).x0)
