"""The model to start from: a folder on this disk, fetched from the Hugging Face hub where it is none.

Only safetensors weights are read and no code of a model's is ever run. Everything but the weights is later copied as it
is, so that a server that reads the base model reads the tuned one. Knows nothing of training.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from fastgen.errors import InputError

_WEIGHTS: Final = "*.safetensors"
_PATTERNS: Final = ("*.json", "*.jinja", "*.model", "*.txt", _WEIGHTS, "LICENSE*", "NOTICE*")
_NOT_COPIED: Final = ("*.safetensors.index.json", "tuning.json", "trainer_state.json")
_SAMPLE_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A model folder, and its name for people (no path)."""

    folder: Path
    name: str

    def config(self) -> dict[str, Any]:
        """What config.json says.

        :raises InputError: it is not there or broken.
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
    """The model in the folder ``name``; ``None`` where that is no folder.

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
    """The hub's model of this name, in the library's own cache.

    :raises InputError: no such model, no access, or no network.
    """
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, allow_patterns=list(_PATTERNS)))
    except Exception as error:  # noqa: BLE001 - the library and its HTTP client raise trees of their own
        kind = type(error).__name__
        raise InputError(
            f"--base-model {name}: is no folder here and could not be had from the hub ({kind}); check name and network"
        ) from None
    found = local_base(str(folder))
    assert found is not None, "it was just written"  # noqa: S101 - the library's promise
    return BaseModel(found.folder, name)
