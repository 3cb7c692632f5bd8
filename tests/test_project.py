"""The files around the package agree with each other: metadata, pins, citation, workflow, container."""

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import halfstep

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
PINS = {
    canonicalize_name(pin.name): pin
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if (text := line.partition("#")[0].strip()) and (pin := Requirement(text))
}
NOT_IN_ALL = {
    "all",
    "dev",
    "docs",
    "fid",  # needs torchvision, which must be made for the torch that is there
}
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
REPOSITORY = PROJECT["urls"]["Source"]
PAGES = [
    path
    for pattern in ("*.md", "*.cff", "docs/**/*.md", ".github/**/*", "halfstep/**/*.j2")
    for path in sorted(ROOT.glob(pattern))
    if path.is_file()
]


def requirements(lines):
    return [Requirement(line) for line in lines]


def targets():
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


# -- pyproject.toml --------------------------------------------------------------------------------


def test_the_classifiers_are_the_versions_of_python_that_are_allowed():
    prefix = "Programming Language :: Python :: 3."
    stated = [c.rpartition(" ")[2] for c in PROJECT["classifiers"] if c.startswith(prefix)]
    assert tuple(stated) == PYTHONS
    allowed = SpecifierSet(PROJECT["requires-python"])
    assert all(version in allowed for version in PYTHONS) and "3.10" not in allowed


def test_all_is_every_extra_that_can_be_installed_beside_any_torch():
    [everything] = requirements(EXTRAS["all"])
    assert everything.name == "halfstep" and everything.extras == EXTRAS.keys() - NOT_IN_ALL
    assert "dev" not in everything.extras


def test_lists_are_in_order():
    assert PROJECT["dependencies"] == sorted(PROJECT["dependencies"])
    extras = [name for name in EXTRAS if name not in ("all", "dev")]
    assert extras == sorted(extras)
    for name in extras:
        assert EXTRAS[name] == sorted(EXTRAS[name]), name


@pytest.mark.parametrize("extra", ["", *(name for name in EXTRAS if name != "all")])
def test_what_is_needed_resolves_to_pins_with_all_that_comes_with_it(extra):
    """Pinned by constraints.txt, or by the requirement itself; of libraries installed here all they need."""
    waiting = requirements(EXTRAS[extra] if extra else PROJECT["dependencies"])
    done = set()
    while waiting:
        needed = waiting.pop()
        name = canonicalize_name(needed.name)
        if (name, frozenset(needed.extras)) in done:
            continue
        done.add((name, frozenset(needed.extras)))
        if str(needed.specifier).startswith("=="):
            continue
        assert name in PINS, f"{extra or 'the core'} needs {needed}"
        [pin] = PINS[name].specifier
        assert pin.operator == "==" and needed.specifier.contains(pin.version, prereleases=True)
        waiting += [each for each in needed_by(needed) if name != "torch"]


def needed_by(requirement):
    """What an installed library needs here; nothing for one that is not installed."""
    try:
        lines = metadata.requires(requirement.name) or []
    except metadata.PackageNotFoundError:
        return []
    extras = requirement.extras or {""}
    found = requirements(lines)
    return [
        each
        for each in found
        if each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in extras)
    ]


def test_every_extra_that_a_sentence_names_exists():
    sources = [*ROOT.glob("halfstep/**/*.py"), *PAGES]
    named = {
        (path.name, extra.strip())
        for path in sources
        for group in re.findall(r"halfstep\[([a-z0-9, -]+)\]", path.read_text(encoding="utf-8"))
        for extra in group.split(",")
    }
    assert len(named) > 8
    for where, extra in named:
        assert extra in EXTRAS, (where, extra)


# -- the repository --------------------------------------------------------------------------------


def test_the_repository_has_one_address_and_links_into_it_lead_to_files():
    raw = REPOSITORY.replace("github.com", "raw.githubusercontent.com")
    pages = [*PAGES, ROOT / "pyproject.toml", ROOT / "Dockerfile"]
    for page in pages:
        text = page.read_text(encoding="utf-8")
        for owner in re.findall(r"//(?:raw\.)?github(?:usercontent)?\.com/([\w-]+)/halfstep", text):
            assert f"https://github.com/{owner}/halfstep" == REPOSITORY, page
        inside = rf"{re.escape(REPOSITORY)}/(?:blob|tree)/main/([^\s)#>\"]+)"
        for target in re.findall(rf"{inside}|{re.escape(raw)}/main/([^\s)#>\"]+)", text):
            assert (ROOT / "".join(target)).exists(), (page, target)


def test_the_readme_is_right_on_the_index_where_relative_links_lead_nowhere():
    targets = re.findall(r"\]\(([^)]+)\)", (ROOT / PROJECT["readme"]).read_text())
    assert targets and all(target.startswith("https://") for target in targets), targets


def test_the_citation_is_of_this_version_and_has_what_the_format_asks_for():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == halfstep.__version__ and citation["cff-version"] == "1.2.0"
    assert citation["license"] == PROJECT["license"]
    assert citation["repository-code"] == REPOSITORY and citation["type"] == "software"
    assert [author["name"] for author in citation["authors"]] == [
        author["name"] for author in PROJECT["authors"]
    ]
    works = [citation, *citation["references"]]
    for work in works:
        assert work["title"] and all(
            "name" in author or author.keys() == {"family-names", "given-names"}
            for author in work["authors"]
        )
    assert [work["type"] for work in works[1:]] == ["conference-paper"] * 2
    for work in works[1:]:
        assert isinstance(work["year"], int) and work["url"].startswith("https://arxiv.org/abs/")


def test_the_workflow_runs_what_the_makefile_has_on_every_version_of_python():
    workflow = yaml.safe_load((ROOT / ".github/workflows/check.yml").read_text())
    jobs = workflow["jobs"]
    assert tuple(jobs["tests"]["strategy"]["matrix"]["python-version"]) == PYTHONS
    lines = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    made = {line.removeprefix("make ") for line in lines}
    assert all(line.startswith("make ") for line in lines)
    assert {"check", "test", "docs", "dist"} <= made <= targets()
    for job in jobs.values():
        assert job["timeout-minutes"] <= 60
        assert job["steps"][0]["uses"].startswith("actions/checkout@")
    assert workflow["permissions"] == {"contents": "read"}


@pytest.mark.parametrize("name", ["bug", "idea"])
def test_issue_templates_are_forms(name):
    form = yaml.safe_load((ROOT / f".github/ISSUE_TEMPLATE/{name}.yml").read_text())
    assert form["name"] and form["description"]
    ids = [field["id"] for field in form["body"]]
    assert len(set(ids)) == len(ids) and all(
        field["type"] in ("textarea", "input") and field["attributes"]["label"]
        for field in form["body"]
    )


def test_the_templates_name_commands_that_exist():
    text = (ROOT / ".github/pull_request_template.md").read_text()
    named = set(re.findall(r"`make ([a-z-]+)`", text))
    assert named and named <= targets()


# -- the container ---------------------------------------------------------------------------------


def test_the_image_copies_files_that_its_context_has_and_all_that_the_package_needs():
    allowed = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[0] == "!"
    }
    text = (ROOT / "Dockerfile").read_text()
    copied = [
        name
        for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE)
        for name in line.split()[:-1]
    ]
    assert {name.removeprefix("./") for name in copied} == allowed
    assert all((ROOT / name).exists() for name in allowed)
    assert {PROJECT["readme"], *PROJECT["license-files"], "halfstep"} <= allowed
    assert re.search(r"^ARG PYTHON=(\S+)", text, re.MULTILINE)[1] in PYTHONS
    assert "USER halfstep" in text and 'ENTRYPOINT ["halfstep"]' in text


# -- notices ---------------------------------------------------------------------------------------


def test_every_folder_of_assets_has_a_notice_and_its_preset():
    text = (ROOT / "THIRD_PARTY.md").read_text()
    folders = {path.name for path in (ROOT / "halfstep/assets").iterdir() if path.is_dir()}
    for folder in folders:
        assert f"`{folder}`" in text or f"assets/{folder}/`" in text, folder
    presets = re.findall(r"`(halfstep/presets/[\w-]+\.toml)`", text)
    assert len(presets) == len(folders) - 1 and all((ROOT / preset).exists() for preset in presets)
    assert "THIRD_PARTY.md" in PROJECT["license-files"]
