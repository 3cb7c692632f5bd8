"""ComfyUI's sigmas, against numbers worked out by hand."""

from math import exp, inf

import pytest
import torch

from halfstep.diffusion.samplers.comfyui import COMFYUI, discrete_table, FlowTable

ALPHA2 = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000).double() ** 2, 0)
TABLE = discrete_table(ALPHA2)
FLOW = FlowTable(1.0)


def labels(table, name, steps):
    sigmas = COMFYUI[name](table, steps)
    assert sigmas.dtype == torch.float64 and len(sigmas) == steps + 1
    assert sigmas[-1] == 0 and (sigmas.diff() < 0).all()
    return table.place_of(sigmas[:-1]).tolist()


@pytest.mark.parametrize("name", COMFYUI)
@pytest.mark.parametrize("table", [TABLE, FLOW, FlowTable(3.0), FlowTable(exp(1.15), 10_000)])
@pytest.mark.parametrize("steps", [1, 2, 7, 50])
def test_every_schedule_falls_from_the_noisiest_level_to_0(table, name, steps):
    sigmas = COMFYUI[name](table, steps)
    assert labels(table, name, steps)[0] == table.place_of(table.sigmas[-1:])
    torch.testing.assert_close(sigmas[0], table.sigmas[-1])


def test_levels_of_a_table_of_betas():
    assert labels(TABLE, "simple", 4) == [999, 749, 499, 249]
    assert labels(TABLE, "simple", 3) == [999, 666, 333]  # 1000 / 3 is rounded towards noise
    assert labels(TABLE, "normal", 4) == [999, 666, 333, 0]
    assert labels(TABLE, "sgm_uniform", 4) == [999, 749, 500, 250]
    sigma = ((1 - ALPHA2) / ALPHA2).sqrt()
    assert COMFYUI["simple"](TABLE, 4)[1] == sigma[749]
    between = COMFYUI["sgm_uniform"](TABLE, 4)[1].log()  # at 749.25, a geometric mean
    torch.testing.assert_close(between, 0.75 * sigma[749].log() + 0.25 * sigma[750].log())


def test_karras_is_even_in_the_seventh_root():
    roots = COMFYUI["karras"](TABLE, 5)[:-1] ** (1 / 7)
    torch.testing.assert_close(roots.diff(), roots.diff().mean().expand(4))
    torch.testing.assert_close(roots[-1] ** 7, TABLE.sigmas[0])


def test_flows():
    assert labels(FLOW, "simple", 4) == [1000, 750, 500, 250]
    three = FlowTable(3.0)
    torch.testing.assert_close(
        COMFYUI["simple"](three, 4)[:-1], torch.tensor([1, 0.9, 0.75, 0.5]).double()
    )
    # `normal` begins at the last entry's own sigma, 3 / 1002, and shifts it once more
    end = 3 / 1002
    assert float(COMFYUI["normal"](three, 4)[-2]) == pytest.approx(3 * end / (1 + 2 * end))
    middle = (1 + end) / 2
    assert float(COMFYUI["sgm_uniform"](three, 2)[1]) == pytest.approx(
        3 * middle / (1 + 2 * middle)
    )


def test_normal_takes_a_tiny_sigma_for_0():
    tiny = FlowTable(0.05)
    sigmas = COMFYUI["normal"](tiny, 4)
    assert len(sigmas) == 5 and 0 < sigmas[-1] < 1e-5


def test_flux_s_table_is_finer():
    flux = FlowTable(exp(1.15), 10_000)
    t = torch.tensor([1, 0.75, 0.5, 0.25]).double()
    expected = exp(1.15) / (exp(1.15) + 1 / t - 1)
    torch.testing.assert_close(COMFYUI["simple"](flux, 4)[:-1], expected)
    assert len(flux.sigmas) == 10_000


def test_zero_terminal_snr_has_a_large_last_sigma():
    alpha2 = ALPHA2.clone()
    alpha2[-1] = 0
    last = discrete_table(alpha2).sigmas[-1]
    assert 4518 < float(last) < 4519 < inf
    assert torch.equal(discrete_table(ALPHA2).sigmas, ((1 - ALPHA2) / ALPHA2).sqrt())
    assert alpha2[-1] == 0  # the argument stays
