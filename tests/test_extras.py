"""The tests that need an extra, where it is not installed: each in an environment made for it.

PyPI's torch for Linux brings 3 GB of CUDA, so the extra ``tune`` is not part of ``test``. The embedded server has a
torch for CPUs and transformers; what they lack is small. An environment sees this one's packages and theirs behind its
own.
"""

from __future__ import annotations

import asyncio
import importlib.util
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

import pytest

from fastgen.servers.embedded import ensure_embedded

ROOT = Path(__file__).parent.parent
EMBEDDED_HAS = ("torch", "transformers")


def _environment_over(others: list[Path], folder: Path) -> Path:
    """The interpreter of a new environment that sees the packages of others behind its own."""
    venv.create(folder, with_pip=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    (folder / "lib" / version / "site-packages" / "others.pth").write_text("\n".join(map(str, others)))
    return folder / "bin" / "python"


def _extra(name: str) -> list[str]:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    return [needed for needed in extras[name] if not needed.startswith(EMBEDDED_HAS)]


def _run(*command: str | Path) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.mark.real_server
@pytest.mark.parametrize(
    ("extra", "made_by", "files"),
    [
        ("tune", "trl", ["tests/tune/test_training.py", "tests/export/test_export.py"]),
        ("report", "spacy", ["tests/report/test_parts.py"]),
    ],
)
def test_what_needs_an_extra_passes_with_the_real_libraries(
    extra: str, made_by: str, files: list[str], cache_dir: Path, tmp_path: Path
) -> None:
    if importlib.util.find_spec(made_by) is not None:
        pytest.skip("it is installed here, and they run here")
    embedded = asyncio.run(ensure_embedded(cache_dir, report=print))
    theirs = _run(embedded.python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    python = _environment_over([Path(sysconfig.get_path("purelib")), Path(theirs)], tmp_path / "venv")
    _run(python, "-m", "pip", "install", "--quiet", *_extra(extra))
    said = _run(python, "-m", "pytest", "-q", "-rs", "-m", "not real_server", "-p", "no:cacheprovider", *files)
    assert "skipped" not in said, said
