"""The folders of a tuning: the one that it writes, the base model that it starts from, and the tuned model's card.

The folder that a tuning writes, from its first checkpoint to the finished model::

    OUT/.lock                      names the process that tunes; there while it runs
    OUT/training/meaning.json      the configuration, and figures of the data; written once the data is whole
    OUT/training/                  the data, checkpoint-N/ (whole where it has ``complete``), and the model while it is
                                   written; removed at the end
    OUT/loss.jsonl                 a line per logged step
    OUT/config.json ...            the model, its tokenizer, README.md, loss.png
    OUT/tuning.json                the figures; written last, when the model is whole

Guarantees: one process at a time writes. A checkpoint counts only once it is whole. A folder with other files is
refused. Of the base model, only safetensors weights are read, and none of its code is run. All its other files are
copied unchanged, so that a server that can serve the base model can serve the tuned one. The card is made for
publishing: it has no paths and no generated text.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from fastgen.errors import InputError
from fastgen.store.files import write_file
from fastgen.store.job_folder import JobFolder, check_configuration, read_object
from fastgen.text import markdown, markdown_code

_MARK: Final = "complete"
_LOCK: Final = ".lock"
_FORMAT: Final = 1
_WEIGHTS: Final = "*.safetensors"
_PATTERNS: Final = ("*.json", "*.jinja", "*.model", "*.txt", _WEIGHTS, "LICENSE*", "NOTICE*")
_NOT_COPIED: Final = ("*.safetensors.index.json", "tuning.json", "trainer_state.json")
_SAMPLE_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class TuningFolder:
    """The folder that a tuning writes."""

    path: Path

    @property
    def training(self) -> Path:
        """What is needed only while the training runs."""
        return self.path / "training"

    @property
    def losses(self) -> Path:
        """The loss, step by step."""
        return self.path / "loss.jsonl"

    @property
    def result(self) -> Path:
        """The figures of a finished tuning."""
        return self.path / "tuning.json"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """The folder exists and only this process uses it.

        :raises InputError: it is in use, or holds something else. :raises DiskError: it cannot be written.
        """
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"--output {self.path}: is a file; name a folder")
        is_tuning = self.training.is_dir() or self.result.exists() or not self.path.exists()
        if not is_tuning and any(path.name != _LOCK for path in self.path.iterdir()):
            raise InputError(f"--output {self.path}: holds files but no tuning; name a new or empty folder")
        folder = JobFolder(self.path, named=f"--output {self.path}", instead="name another folder", lock=_LOCK)
        try:
            yield
        finally:
            folder.close(remove_lock=True)

    def begun(self) -> dict[str, Any] | None:
        """What `begin` wrote, if a tuning was begun and not finished."""
        return read_object(self.training / "meaning.json")

    def finished(self) -> dict[str, Any] | None:
        """What `publish` wrote, if a model is whole."""
        return read_object(self.result)

    def check_configuration(self, saved: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
        """:raises InputError: the tuning was begun with other flags, data or model; names the differences."""
        holds, remedy = f"--output {self.path}: was begun with", "repeat that command to resume, or name a new folder"
        check_configuration(saved, asked, holds=holds, remedy=remedy, label=lambda name: name.replace("_", " "))

    def clear(self) -> None:
        """Remove what was left before `begin`, and make room."""
        self.forget_training()
        self.losses.unlink(missing_ok=True)
        self.training.mkdir()

    def begin(self, configuration: Mapping[str, Any], data: Mapping[str, Any]) -> None:
        """Keep the configuration. The data is whole.

        :raises DiskError: it cannot be written.
        """
        _write(self.training / "meaning.json", {"meaning": configuration, "data": data})

    def mark_complete(self, step: int) -> None:
        """Note that the checkpoint of this step is whole."""
        (self.training / f"checkpoint-{step}" / _MARK).touch()

    def last_checkpoint(self) -> tuple[int, Path] | None:
        """(step, folder) of the newest whole checkpoint. Those that are not whole are removed."""
        found: list[tuple[int, Path]] = []
        for folder in self.training.glob("checkpoint-*"):
            if (folder / _MARK).exists():
                found.append((int(folder.name.rpartition("-")[2]), folder))
            else:
                shutil.rmtree(folder, ignore_errors=True)
        return max(found, default=None)

    def scratch(self) -> Path:
        """A new folder for the model's files, on the same disk."""
        path = self.training / "model"
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        return path

    def publish(self, scratch: Path, result: Mapping[str, Any]) -> None:
        """Move the model's files into the folder, write ``tuning.json`` last, and remove the training.

        :raises OSError: a file cannot be moved. :raises DiskError: ``tuning.json`` cannot be written.
        """
        for file in sorted(scratch.iterdir()):
            file.replace(self.path / file.name)
        _write(self.result, result)
        self.forget_training()

    def forget_training(self) -> None:
        """Remove checkpoints and data."""
        shutil.rmtree(self.training, ignore_errors=True)


def _write(path: Path, value: Mapping[str, Any]) -> None:
    options = orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE
    write_file(path, orjson.dumps({"format": _FORMAT, **value}, option=options))


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A model folder, and its name for people (no path)."""

    folder: Path
    name: str

    def config(self) -> dict[str, Any]:
        """The content of config.json.

        :raises InputError: it is missing or broken.
        """
        try:
            value = orjson.loads((self.folder / "config.json").read_bytes())
        except (OSError, ValueError):
            value = None
        if not isinstance(value, dict):
            raise InputError(f"--base-model {self.folder}: its config.json cannot be read; name a whole model folder")
        return value

    def fingerprint(self) -> str:
        """Of the small files, and of each weight file's size, first and last MiB: fast for any model."""
        digest = hashlib.sha256()
        for path in sorted([*self._small_files(), *self.folder.glob(_WEIGHTS)]):
            size = path.stat().st_size
            digest.update(f"{path.name} {size}\n".encode())
            with path.open("rb") as file:
                digest.update(file.read(_SAMPLE_BYTES))
                file.seek(max(0, size - _SAMPLE_BYTES))
                digest.update(file.read(_SAMPLE_BYTES))
        return digest.hexdigest()

    def copy_small_files(self, target: Path) -> None:
        """Configuration, tokenizer, chat template and licence, as they are."""
        for path in self._small_files():
            shutil.copyfile(path, target / path.name)

    def _small_files(self) -> Iterator[Path]:
        for pattern in _PATTERNS:
            if pattern != _WEIGHTS:
                files = (path for path in sorted(self.folder.glob(pattern)) if path.is_file())
                yield from (path for path in files if not any(path.match(other) for other in _NOT_COPIED))


def local_base(name: str) -> BaseModel | None:
    """The model in the folder ``name``, or ``None`` where that is no folder.

    :raises InputError: a folder without a model.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return None
    for pattern in ("config.json", _WEIGHTS):
        if not any(folder.glob(pattern)):
            raise InputError(f"--base-model {name}: has no {pattern}; name a folder with a whole model")
    return BaseModel(folder.resolve(), folder.resolve().name)


def hub_base(name: str) -> BaseModel:
    """The hub's model of this name, downloaded to the library's own cache.

    :raises InputError: no such model, no access, or no network.
    """
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, allow_patterns=list(_PATTERNS)))
    except Exception as error:  # noqa: BLE001 - the library and its HTTP client raise various errors
        kind = type(error).__name__
        raise InputError(
            f"--base-model {name}: is no folder here and could not be downloaded from the hub ({kind}); check name "
            "and network"
        ) from None
    found = local_base(str(folder))
    assert found is not None, "it was just written"  # noqa: S101 - the library's promise
    return BaseModel(found.folder, name)


_CAUTION: Final = """\
- **A model wrote the data** (unless its source says otherwise), and it was not checked. The tuned model learns its form
  and its mistakes. A small model that learns from itself gains format, not knowledge.
- **Terms.** The licences of the base model and of the model that wrote the data both apply to this one.
- **Not evaluated here.** A lower loss on held-out rows says that the model writes more like its data, not that it is
  better; `fastgen evaluate` measures that."""


def write_card(name: str, result: Mapping[str, Any]) -> str:
    """The content of README.md. ``result`` is the content of tuning.json."""
    base, data = result["base_model"], result["data"]
    flags = {name: value for name, value in result["meaning"].items() if name not in ("base_model", "source")}
    source = markdown(str(data["source"]))
    sections = (
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags:\n- fastgen\n- self-instruct\n- sft\n---",
        f"# {markdown(name)}",
        f"{markdown_code(base)} tuned by fastgen {result['fastgen']} on {data['train_rows']:,} rows of {source}.",
        "Serve it with `vllm serve FOLDER`, or let fastgen start it: `fastgen generate --model FOLDER`.",
        "## How it was tuned\n\n" + "\n".join(_table(flags)),
        "## Figures\n\n" + "\n".join(_figures(result)),
        "## What to be careful about\n\n" + _CAUTION,
    )
    return "\n\n".join(sections) + "\n"


def _figures(result: Mapping[str, Any]) -> Iterator[str]:
    shown = {
        name: f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
        for name, value in result["figures"].items()
    }
    yield from _table(shown)
    yield ""
    yield f"Data fingerprint (SHA-256): `{result['data']['sha256'][:16]}`. Losses are in nats per completion token."
    if result["plot"]:
        yield ""
        yield "![loss](loss.png)"


def _table(values: Mapping[str, Any]) -> list[str]:
    rows = (f"| {name.replace('_', ' ')} | {markdown(str(value))} |" for name, value in values.items())
    return ["| | |", "|---|---|", *rows]
