"""The site: `make docs` writes build/docs/index.html, and takes every warning for an error."""

import os
import re
import sys
import urllib.request
from pathlib import Path

from halfstep.cli import PAGES
from halfstep.version import __version__

sys.path.insert(0, str(Path(__file__).parent / "extensions"))

project = "halfstep"
author = "The halfstep maintainers"
release = version = __version__
copyright = "the halfstep maintainers, Apache-2.0"

extensions = [
    "myst_nb",
    "llms",
    "reference",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.viewcode",
]
root_doc = "index"
exclude_patterns = ["extensions", "**.ipynb_checkpoints"]
source_suffix = {".rst": "restructuredtext", ".md": "myst-nb", ".ipynb": "myst-nb"}
nitpicky = True
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "none"
autosummary_generate = False
highlight_language = "python"

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4
myst_links_external_new_tab = False
nb_merge_streams = True
nb_execution_mode = "off"  # tests/test_tutorials.py executes it; the committed outputs are shown

html_theme = "furo"
html_title = "halfstep"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_sourcelink_suffix = ""  # so that llms.txt can link to the Markdown
html_show_sourcelink = False


INVENTORIES = {
    "python": "https://docs.python.org/3/",
    "torch": "https://docs.pytorch.org/docs/stable/",
    "diffusers": "https://huggingface.co/docs/diffusers/main/en/",
}


def online(url):
    """Whether the names of this project can be linked: without a network the site has no such links."""
    try:
        return urllib.request.urlopen(f"{url}objects.inv", timeout=5).status == 200
    except OSError:
        return False


if not os.environ.get("HALFSTEP_OFFLINE"):
    intersphinx_mapping = {name: (url, None) for name, url in INVENTORIES.items() if online(url)}
nitpick_ignore_regex = [("py:.*", r"(torch|diffusers|numpy)\..*")]  # offline they are text


def help_pages():
    """The pages of help of all verbs, as Markdown."""
    for path in sorted(PAGES.glob("*.txt")):
        text = path.read_text(encoding="utf-8")
        verb = (
            text.splitlines()[0]
            .removeprefix("usage: halfstep ")
            .split(" ")[: 1 + ("-" in path.stem)]
        )
        yield f"## {' '.join(verb)}\n\n```text\n{text}```\n"


def inside(app, docname, source):
    """Links to pages above docs lead to the pages that include them; those pages' links start at docs."""
    source[0] = source[0].replace("](docs/", "](/")
    for page in ("CHANGELOG", "CONTRIBUTING", "LOG"):
        source[0] = re.sub(rf"\]\((?:\.\./)*{page}\.md", f"](/project/{page.lower()}.md", source[0])


def setup(app):
    app.connect("source-read", inside)
    app.connect("include-read", lambda app, path, parent, source: inside(app, parent, source))
