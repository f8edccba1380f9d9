"""The release: the archives are complete, describe themselves, and agree with the changelog and the citation.

`.ci/run` also installs them into an empty environment.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import fastgen

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
VERSION: str = PROJECT["version"]
STEM = f"{re.sub(r'[-_.]+', '_', PROJECT['name']).lower()}-{VERSION}"
SEEDS = "fastgen/methods/self_instruct/seed_tasks.jsonl"


def _run(*command: str | Path) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The source archive, and the wheel that is built from it."""
    output = tmp_path_factory.mktemp("dist")
    _run(sys.executable, "-m", "build", "--no-isolation", "--outdir", output, ".")
    source, wheel = output / f"{STEM}.tar.gz", output / f"{STEM}-py3-none-any.whl"
    assert sorted(output.iterdir()) == sorted([source, wheel])
    return source, wheel


def _in_project(*folders: str) -> set[str]:
    """The files below these folders that belong to the project."""
    found = (path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file())
    return {str(path.relative_to(ROOT)) for path in found if "__pycache__" not in path.parts}


def test_the_source_archive_has_seeds_docs_tests_and_all_code(archives: tuple[Path, Path]) -> None:
    with tarfile.open(archives[0]) as archive:
        names = {name.removeprefix(f"{STEM}/") for name in archive.getnames()}
    wanted = _in_project("fastgen", "seeds", "docs", "tests", "examples", "benchmarks", "container")
    assert wanted - names == set()
    assert {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "CITATION.cff", "SECURITY.md"} <= names
    assert {"Dockerfile", "compose.yaml", "pyproject.toml"} <= names
    assert not [name for name in names if "__pycache__" in name or name.startswith((".venv", "runs/", "dist/"))]


def test_the_wheel_has_the_package_and_its_data_and_nothing_else(archives: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(archives[1]) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        seeds = archive.read(SEEDS)
    assert names == _in_project("fastgen") | {SEEDS}
    assert seeds == (ROOT / "seeds" / "seed_tasks.jsonl").read_bytes()


def test_the_index_would_take_both(archives: tuple[Path, Path]) -> None:
    said = _run(sys.executable, "-m", "twine", "--no-color", "check", "--strict", *archives)
    assert said.count("PASSED") == 2


def test_the_changelog_and_the_citation_know_the_version() -> None:
    assert fastgen.__version__ == VERSION
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (.*)$", changelog, re.MULTILINE)
    assert headings[0] == "Unreleased"
    released = re.fullmatch(rf"{re.escape(VERSION)} - (\d{{4}}-\d\d-\d\d)", headings[1])
    assert released is not None, headings[1]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert str(citation["version"]) == VERSION
    assert str(citation["date-released"]) == released[1]
    assert citation["license"] == PROJECT["license"]
    assert {"cff-version", "message", "title", "authors", "type"} <= set(citation)


def test_the_issue_templates_are_forms_with_what_github_asks_for() -> None:
    folder = ROOT / ".github" / "ISSUE_TEMPLATE"
    forms = sorted(path for path in folder.glob("*.yml") if path.name != "config.yml")
    assert len(forms) >= 2
    for path in forms:
        form = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert {"name", "description", "body"} <= set(form), path.name
        fields = [one for one in form["body"] if one["type"] != "markdown"]
        identifiers = [one["id"] for one in fields]
        assert len(identifiers) == len(set(identifiers))
        assert all(one["type"] in {"textarea", "input", "dropdown", "checkboxes"} for one in fields)
        assert all(one["attributes"]["label"] for one in fields)
