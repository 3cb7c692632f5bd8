"""The page on paper: every page is full, and nothing is only for a screen."""

import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from halfstep.report.page import render
from tests.support.browser import needs_chromium
from tests.support.evidence import encoder_report, evidence, guided_pictures, pictures, typed
from tests.support.pages import different

needs_poppler = pytest.mark.skipif(
    not shutil.which("pdftoppm"), reason="no poppler here: the printed page was not looked at"
)
REPORTS = {
    "progressive": lambda: typed(evidence(), pictures()),
    "guided": lambda: typed(different(), guided_pictures()),
    "encoders": lambda: typed(encoder_report(), {"grid": pictures()["grid"], "grid_labels": list("abcde")}),
}  # fmt: skip


def printed(text, folder):
    """The printed pages, grey from 0 to 255."""
    (folder / "report.html").write_text(text, encoding="utf-8")
    subprocess.run(
        [
            *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
            *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
            *("--disable-sync", f"--user-data-dir={folder / 'profile'}", "--no-pdf-header-footer"),
            *(f"--print-to-pdf={folder / 'report.pdf'}", (folder / "report.html").as_uri()),
        ],
        capture_output=True, timeout=120, check=True,
    )  # fmt: skip
    pages = folder / "page"
    subprocess.run(
        ["pdftoppm", "-r", "40", "-gray", folder / "report.pdf", pages], timeout=60, check=True
    )
    return [np.asarray(Image.open(path)) for path in sorted(folder.glob("page-*.pgm"))]


@needs_chromium
@needs_poppler
@pytest.mark.parametrize("paper", ["letter", "A4"])
@pytest.mark.parametrize("name", REPORTS)
def test_no_page_is_a_third_empty(name, paper, tmp_path):
    """But the last one."""
    text = render(REPORTS[name]()).replace("<style>", f"<style>@page {{ size: {paper} }}", 1)
    pages = printed(text, tmp_path)
    assert 2 <= len(pages) <= 14
    empty = [1 - np.nonzero((page < 200).any(1))[0].max() / len(page) for page in pages]
    assert max(empty[:-1]) < 1 / 3, [f"{x:.2f}" for x in empty]
    assert all((page[:, :10] > 250).all() and (page[:, -10:] > 250).all() for page in pages)


@needs_chromium
@needs_poppler
def test_a_picture_that_is_enlarged_on_the_screen_is_not_on_paper(tmp_path):
    text = render(typed(evidence(), pictures()))
    enlarged = text.replace(' checked aria-label="No picture', ' aria-label="No picture')
    enlarged = enlarged.replace('id="grid-1-3"', 'id="grid-1-3" checked')
    assert enlarged != text
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    for page, same in zip(printed(text, one), printed(enlarged, other), strict=True):
        assert (page == same).all()
