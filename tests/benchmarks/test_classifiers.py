"""The benchmark of the classifiers compares the same weights in two layouts."""

import json

import pytest
import torch

from benchmarks.classifiers import main, NETS, pair, table


@pytest.fixture(autouse=True)
def same_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", NETS)
def test_the_same_network_in_two_layouts(name):
    ours, usual = (net.eval() for net in pair(name))
    x = torch.randn(3, 1, NETS[name][0], NETS[name][0])
    torch.testing.assert_close(ours(x), usual(x), rtol=1e-4, atol=1e-4)
    both = zip(ours.parameters(), usual.parameters(), strict=True)
    layouts = [(a.stride(), b.stride()) for a, b in both if a.ndim == 4]
    assert layouts
    for last, first in layouts:
        assert last[1] == 1 and last != first and list(first) == sorted(first, reverse=True)


def test_what_it_prints(capsys):
    main(["--only", "shallow", "--rounds", "1", "--batch", "2", "--json"])
    results = json.loads(capsys.readouterr().out)
    assert results["shallow"]["update ms"] > 0 and results["shallow"]["forward ratio"] > 0
    assert "shallow" in table(results)
