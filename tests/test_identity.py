"""sha256 of what networks and data hold: another for whatever differs."""

import pytest
import torch
from torch import nn

from halfstep.data import Dataset
from halfstep.identity import digest_of, sha256_of

VALUES = torch.tensor([[0.25, -1.0], [0.5, 1.0]])
DIFFERENT = [
    (VALUES,),
    (VALUES, None),
    (None, VALUES),
    (VALUES.double(),),
    (VALUES.view(torch.int32),),
    (VALUES.flatten(),),
    (VALUES.T,),
    (-VALUES,),
    (VALUES[:1], VALUES[1:]),
    ("a", "b"),
    ("b", "a"),
    ("ab",),
    ("a' 'b",),
    ("None",),
    (None,),
    (),
]


def test_whatever_differs_has_another_name():
    assert len({sha256_of(parts) for parts in DIFFERENT}) == len(DIFFERENT)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int64, torch.bool])
@pytest.mark.parametrize("shape", [(), (0,), (3, 2)])
def test_the_same_has_the_same_name_however_it_lies_in_memory(dtype, shape):
    x = torch.ones(*shape, 4, dtype=dtype)
    assert sha256_of([x]) == sha256_of(iter((x.clone(),)))
    assert sha256_of([x.movedim(-1, 0)]) == sha256_of([x.movedim(-1, 0).contiguous()])


class Line(nn.Linear):
    pass


def test_a_network_is_its_weights_their_names_and_its_class():
    net, same, renamed = nn.Linear(2, 2), nn.Linear(2, 2), Line(2, 2)
    for other in (same, renamed):
        other.load_state_dict(net.state_dict())
    assert digest_of(net) == digest_of(same) != digest_of(renamed)
    with torch.no_grad():
        same.bias[1] = torch.nextafter(same.bias[1], torch.tensor(9.0))
    assert digest_of(net) != digest_of(same)
    one, other = nn.ParameterDict({"a": net.bias}), nn.ParameterDict({"b": net.bias})
    assert digest_of(one) != digest_of(other)


def test_data_are_their_values_and_labels():
    labels = torch.tensor([0, 1])
    made = Dataset(VALUES, labels, ("a", "b"))
    assert made.fingerprint() == Dataset(VALUES.clone(), labels, ("c", "d")).fingerprint()
    assert made.fingerprint() != Dataset(VALUES).fingerprint()
    assert made.fingerprint() != Dataset(VALUES, labels.flip(0)).fingerprint()
