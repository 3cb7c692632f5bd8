"""A headless Chromium that opens a page, where there is one."""

import shutil
import subprocess

import pytest

needs_chromium = pytest.mark.skipif(
    not shutil.which("chromium"), reason="no chromium here: the page was not opened"
)


def opened(page, profile):
    """The page's DOM once its scripts have run; they say nothing on the console."""
    done = subprocess.run(
        [
            *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
            *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
            *("--disable-sync", "--allow-file-access-from-files", "--window-size=1400,1000"),
            *(f"--user-data-dir={profile}", "--enable-logging=stderr"),
            *("--virtual-time-budget=5000", "--dump-dom", page.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "CONSOLE" not in done.stderr
    return done.stdout
