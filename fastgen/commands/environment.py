"""What commands take from the environment: the cache folder and keys. Nothing else in the package reads it."""

from __future__ import annotations

import os
import re
from pathlib import Path

from fastgen.errors import InputError

_USUAL_NAME = re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)+")
_UNSENDABLE = "the key holds characters that no HTTP header can carry; copy it again, as one line of ASCII"


def cache_dir() -> Path:
    """Where servers and models that fastgen sets up are kept: FASTGEN_CACHE_DIR or the user's cache folder."""
    if given := os.environ.get("FASTGEN_CACHE_DIR"):
        return Path(given).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("fastgen")


def api_key(name: str | None, path: Path | None, flag: str = "--api-key") -> str | None:
    """The key that ``FLAG-env NAME`` or ``FLAG-file PATH`` leads to; ``None`` if neither is given.

    :raises InputError: both are given, or there is no key there.
    """
    if name is not None and path is not None:
        raise InputError(f"{flag}-file: {flag}-env names a key already; give one of the two")
    if name is not None:
        return _key_from_environment(name, f"{flag}-env")
    return None if path is None else _read_key(path, f"{flag}-file")


def _key_from_environment(name: str, flag: str) -> str:
    shown = f" {name}" if _USUAL_NAME.fullmatch(name) else ""  # anything else may be the key itself
    if not (key := os.environ.get(name, "").strip()):
        raise InputError(
            f"{flag}{shown}: that environment variable is not set or empty; give the name of one, not the key itself"
        )
    if not (key.isascii() and key.isprintable()):
        raise InputError(f"{flag}{shown}: {_UNSENDABLE}")
    return key


def _read_key(path: Path, flag: str) -> str:
    try:
        key = path.read_text(encoding="ascii").partition("\n")[0].strip()
    except OSError as error:
        raise InputError(f"{flag} {path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise InputError(f"{flag} {path}: its first line is no key (only ASCII letters, digits and signs)") from None
    if not key:
        raise InputError(f"{flag} {path}: its first line is empty")
    if not key.isprintable():
        raise InputError(f"{flag} {path}: {_UNSENDABLE}")
    return key
