"""A Chromium that is driven by hand: chromedriver's own protocol, without a library."""

import json
import re
import shutil
import subprocess
import time
from contextlib import contextmanager
from urllib.request import Request, urlopen

import pytest

needs_chromedriver = pytest.mark.skipif(
    not (shutil.which("chromedriver") and shutil.which("chromium")),
    reason="no chromedriver here: the page was not driven",
)
ARGUMENTS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--window-size=1280,1000",
)


class Browser:
    """A session of chromedriver."""

    def __init__(self, address):
        self.address = f"{address}/session"
        options = {"args": list(ARGUMENTS), "binary": shutil.which("chromium")}
        wanted = {"capabilities": {"alwaysMatch": {"goog:chromeOptions": options}}}
        self.address += "/" + self._call("", wanted)["sessionId"]

    def _call(self, path, body):
        request = Request(
            self.address + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urlopen(request, timeout=120) as answer:
            return json.load(answer)["value"]

    def open(self, url):
        self._call("/url", {"url": url})

    def run(self, script, *arguments):
        """What the script returns."""
        return self._call("/execute/sync", {"script": script, "args": arguments})

    def wait(self, script, *arguments, seconds=120):
        """The first true value that the script returns."""
        end = time.monotonic() + seconds
        while not (value := self.run(script, *arguments)):
            assert time.monotonic() < end, f"not within {seconds} s: {script}"
            time.sleep(0.2)
        return value

    def close(self):
        urlopen(Request(self.address, method="DELETE"), timeout=60).close()


@contextmanager
def browser():
    """A browser, closed afterwards."""
    driver = subprocess.Popen(
        ["chromedriver", "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        port = next(m[1] for line in driver.stdout if (m := re.search(r"on port (\d+)\.", line)))
        session = Browser(f"http://127.0.0.1:{port}")
        try:
            yield session
        finally:
            session.close()
    finally:
        driver.terminate()
        driver.wait(timeout=30)
        driver.stdout.close()
