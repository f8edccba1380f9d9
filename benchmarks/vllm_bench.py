"""``vllm bench serve`` over recorded prompts: vLLM's own load generator, as a process of its own.

Needs an interpreter with vLLM. The embedded CPU build lacks two things that the command wants: pandas, to read its
``custom`` data set, and metadata of a distribution called ``vllm``, to state its version. Both are laid beside it in a
temporary folder; the environment itself is left as it is.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self

import orjson

EXTRA_PACKAGES = ("pandas", "python-dateutil", "six", "tzdata", "pytz")
_METADATA = "Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n"
_HAS = "import importlib.util as u, sys; sys.exit(any(u.find_spec(n) is None for n in ('pandas',)))"


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt and how many tokens its answer has, neither more nor fewer."""

    text: str
    tokens: int


@dataclass(frozen=True, slots=True)
class BenchFigures:
    """What the command reports of one run: from its first request to its last answer."""

    tokens: int
    wall_s: float
    completed: int

    @property
    def tokens_per_s(self) -> float:
        """Generated tokens a second."""
        return self.tokens / self.wall_s

    @classmethod
    def read(cls, path: Path, expected: int) -> Self:
        """The command's result file.

        :raises RuntimeError: not all requests were answered.
        """
        said = orjson.loads(path.read_bytes())
        if said["completed"] != expected:
            raise RuntimeError(f"vllm bench completed {said['completed']} of {expected} requests")
        return cls(said["total_output_tokens"], said["duration"], said["completed"])


@dataclass(frozen=True, slots=True)
class VllmBench:
    """The command, ready to be run; ``tokenizer`` is a folder or name that it can load."""

    python: str
    tokenizer: str
    folder: Path
    path: str

    def run(
        self, base_url: str, model: str, prompts: Sequence[Prompt], concurrency: int, sampling: Sequence[str]
    ) -> BenchFigures:
        """Send every prompt once, in order, ``concurrency`` at a time; ends of sequences are ignored.

        :raises RuntimeError: it failed; with its last words.
        """
        data, result = self.folder / "prompts.jsonl", self.folder / "result.json"
        data.write_bytes(b"".join(orjson.dumps({"prompt": p.text, "output_tokens": p.tokens}) + b"\n" for p in prompts))
        result.unlink(missing_ok=True)
        command = [
            *(self.python, "-m", "vllm.entrypoints.cli.main", "bench", "serve", "--backend", "openai"),
            *("--base-url", base_url.removesuffix("/v1"), "--model", model, "--served-model-name", model),
            *("--tokenizer", self.tokenizer, "--dataset-name", "custom", "--dataset-path", str(data)),
            *("--custom-output-len", "-1", "--skip-chat-template", "--disable-shuffle", "--no-oversample"),
            *("--num-prompts", str(len(prompts)), "--max-concurrency", str(concurrency), "--ignore-eos", *sampling),
            *("--ready-check-timeout-sec", "0", "--disable-tqdm", "--save-result"),
            *("--result-dir", str(self.folder), "--result-filename", result.name),
        ]
        env = {**os.environ, "PYTHONPATH": self.path, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        if done.returncode != 0 or not result.exists():
            raise RuntimeError(f"vllm bench serve failed\n{done.stdout[-1000:]}\n{done.stderr[-2000:]}")
        return BenchFigures.read(result, len(prompts))


@contextmanager
def vllm_bench(python: str, tokenizer: str, version: str | None) -> Iterator[VllmBench]:
    """The command with what ``python``'s environment lacks, gone on leaving.

    ``version`` is what it states for a distribution that has another name; ``None`` where ``vllm`` is installed.
    """
    with TemporaryDirectory() as name:
        folder, beside = Path(name), Path(name) / "beside"
        beside.mkdir()
        if subprocess.run([python, "-c", _HAS], check=False).returncode != 0:
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(beside)]
            subprocess.run(
                [*pip, "--python-version", _python_version(python), "--only-binary=:all:", *EXTRA_PACKAGES], check=True
            )
        if version is not None:
            (beside / f"vllm-{version}.dist-info").mkdir()
            (beside / f"vllm-{version}.dist-info" / "METADATA").write_text(_METADATA.format(version=version))
        yield VllmBench(python, tokenizer, folder, str(beside))


def _python_version(python: str) -> str:
    asked = [python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
