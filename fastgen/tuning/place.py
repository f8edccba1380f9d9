"""Where a tuning keeps its things: one folder, from the first checkpoint to the finished model.

::

    OUT/
      .lock                 while it goes on: names the process that tunes
      training/             while it goes on: meaning.json, the data, checkpoint-N/ (with `complete`); then gone
      loss.jsonl            a line a logged step
      config.json ...       the model, its tokenizer, README.md, loss.png
      tuning.json           last: the model is whole

Guarantees: one process at a time (`fastgen.storage.locking`); a checkpoint counts only once it is whole; a folder of
anything else is refused. Knows nothing of models and trainers.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from fastgen.errors import DiskError, InputError
from fastgen.storage.files import replacing
from fastgen.storage.locking import Lock

_MARK: Final = "complete"
_LOCK: Final = ".lock"
_FORMAT: Final = 1
_SHOWN: Final = 40  # characters of a value; fingerprints are longer


@dataclass(frozen=True, slots=True)
class TuningFolder:
    """The folder above."""

    path: Path

    @property
    def training(self) -> Path:
        """What is needed only while the training goes on."""
        return self.path / "training"

    @property
    def losses(self) -> Path:
        """The loss, step by step."""
        return self.path / "loss.jsonl"

    @property
    def result(self) -> Path:
        """The figures of a finished tuning."""
        return self.path / "tuning.json"

    @property
    def _meaning(self) -> Path:
        return self.training / "meaning.json"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """The folder is there and this process alone uses it.

        :raises InputError: it is in use, or holds something else. :raises DiskError: it cannot be written.
        """
        self._check_foreign()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DiskError(f"--output {self.path}: cannot be used ({error.strerror}); name another folder") from None
        lock = Lock(self.path / _LOCK, named=f"--output {self.path}", instead="name another folder")
        try:
            yield
        finally:
            lock.release(remove=True)

    def begun(self) -> dict[str, Any] | None:
        """What `begin` wrote, where a tuning was begun and not finished."""
        return _read(self._meaning)

    def finished(self) -> dict[str, Any] | None:
        """What `publish` wrote, where a model is whole."""
        return _read(self.result)

    def clear(self) -> None:
        """Remove what was left before `begin`, and make room."""
        shutil.rmtree(self.training, ignore_errors=True)
        self.losses.unlink(missing_ok=True)
        self.training.mkdir()

    def begin(self, meaning: Mapping[str, Any], data: Mapping[str, Any]) -> None:
        """Remember what this tuning means; its data is whole."""
        _write(self._meaning, {"format": _FORMAT, "meaning": meaning, "data": data})

    def mark_complete(self, step: int) -> None:
        """The checkpoint of this step is whole."""
        (self.training / f"checkpoint-{step}" / _MARK).touch()

    def last_checkpoint(self) -> tuple[int, Path] | None:
        """(step, folder) of the newest whole checkpoint; those that are not whole are removed."""
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
        """Move the model's files to their place, ``tuning.json`` last; then forget the training."""
        for file in sorted(scratch.iterdir()):
            file.replace(self.path / file.name)
        _write(self.result, {"format": _FORMAT, **result})
        self.forget_training()

    def forget_training(self) -> None:
        """Remove checkpoints and data."""
        shutil.rmtree(self.training, ignore_errors=True)

    def _check_foreign(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"--output {self.path}: is a file; name a folder")
        if not self.path.exists() or self.training.is_dir() or self.result.exists():
            return
        if any(path.name != _LOCK for path in self.path.iterdir()):
            raise InputError(f"--output {self.path}: holds files but no tuning; name a new or empty folder")


def check_same_meaning(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """:raises InputError: the folder was begun with other flags, data or model; names the first difference."""
    for name in (*now, *before):
        if before.get(name) != now.get(name):
            was, what = (str(values.get(name, "not given"))[:_SHOWN] for values in (before, now))
            raise InputError(
                f"--output {path}: was begun otherwise ({name.replace('_', ' ')} {was}, now {what}); "
                "repeat that command to go on, or name a new folder"
            )


def _read(path: Path) -> dict[str, Any] | None:
    try:
        value: dict[str, Any] = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        raise InputError(f"{path}: damaged; name a new folder with --output") from None
    return value


def _write(path: Path, value: Mapping[str, Any]) -> None:
    with replacing(path) as sink:
        sink.write(orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
