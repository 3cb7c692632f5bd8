"""U-ViTs of known weights, what they read, and what the official ones answered."""

import math

import pytest
import torch

from halfstep.models import UViT

SMALL = dict(img_size=8, patch_size=2, in_chans=3, embed_dim=32, depth=4, num_heads=4)


LABELLED = dict(
    img_size=12,
    patch_size=4,
    in_chans=4,
    embed_dim=48,
    depth=4,
    num_heads=3,
    num_classes=11,
    mlp_time_embed=True,
    qkv_bias=True,
    conv=False,
)


TEXT = SMALL | dict(in_chans=4, depth=2, num_heads=2, clip_dim=24, num_clip_token=7)


# What the official U-ViT (baofff/U-ViT ce55170, MIT; 'math' attention, float32, CPU) puts out for
# the weights, inputs and times of `probe` below: measured by running it, not by running this one.
PROBES = {
    "unconditional": dict(
        arguments=SMALL,
        parameters=68_704,
        tensors=68,
        first="0.025068 0.098654 0.050164 0.099375 0.046122 0.108049 "
        "0.054011 0.105823 0.214797 0.17591 0.21415 0.172487",
        last="-0.191573 -0.210563 -0.190254 -0.211261 -0.172314 -0.093227 "
        "-0.143875 -0.097567 -0.148317 -0.093854 -0.147704 -0.096231",
        sum=-9.747,
        squares=11.0899,
    ),
    "labels, time MLP, qkv bias, no final convolution": dict(
        arguments=LABELLED,
        parameters=176_752,
        tensors=76,
        first="-0.356385 0.43657 -0.362216 0.157105 -0.354856 0.446199 "
        "-0.380335 0.178694 -0.286162 0.411216 -0.388755 0.228185",
        last="-0.276934 0.434209 -0.43768 0.289602 -0.214815 0.397726 "
        "-0.436943 0.324814 -0.18502 0.368685 -0.416702 0.318982",
        sum=2.8058,
        squares=196.4784,
    ),
    "text": dict(
        arguments=TEXT,
        parameters=42_756,
        tensors=46,
        first="-0.183401 -0.197312 -0.184285 -0.181299 -0.196819 -0.216188 "
        "-0.20001 -0.157583 -0.107095 -0.130527 -0.149935 -0.13513",
        last="-0.097697 -0.108462 -0.118327 -0.083325 0.014016 0.003386 "
        "0.00545 0.017532 -0.000797 0.02577 0.029463 -0.005013",
        sum=-51.2321,
        squares=7.0967,
    ),
}


def wave(n, phase, factor=1.0):
    """factor sin(0.7390851 (j + 1) + phase) for j < n, in float64."""
    j = torch.arange(1, n + 1, dtype=torch.float64)
    return factor * torch.sin(0.7390851 * j + phase)


def set_weights(net):
    """Every parameter by the probe's formula, in the sorted order of the names."""
    state = net.state_dict()
    for k, name in enumerate(sorted(state)):
        values = wave(state[name].numel(), 0.61803399 * (k + 1), 0.15)
        if name.endswith(("norm.weight", "norm1.weight", "norm2.weight")):
            values = values + 1
        state[name].copy_(values.float().reshape(state[name].shape))
    return net


def probe(arguments, dtype=torch.float32, rows=slice(0, 2), **more):
    """The net, and its inputs (x, timesteps, labels, text states), of the probe."""
    net = set_weights(UViT(**{**arguments, **more})).to(dtype).eval()
    shape = 2, arguments["in_chans"], arguments["img_size"], arguments["img_size"]
    x = wave(math.prod(shape), 2.0).float().reshape(shape).to(dtype)
    t = torch.tensor([0.0, 417.25], dtype=torch.float64)
    y = torch.tensor([0, 10])[rows] if "num_classes" in arguments else None
    encoder_hidden_states = None
    if "clip_dim" in arguments:
        shape = 2, arguments["num_clip_token"], arguments["clip_dim"]
        encoder_hidden_states = wave(math.prod(shape), 3.0, 0.5).float().reshape(shape)[rows]
    return net, (x[rows], t[rows], y, encoder_hidden_states)


def numbers(text):
    return torch.tensor([float(word) for word in text.split()], dtype=torch.float64)


def error(out, case):
    """Largest difference from the official output where it was written down."""
    first = out[0].flatten()[:12].double() - numbers(case["first"])
    last = out[1].flatten()[-12:].double() - numbers(case["last"])
    return torch.cat([first, last]).abs().max().item()


cases = pytest.mark.parametrize("case", PROBES.values(), ids=PROBES.keys())
