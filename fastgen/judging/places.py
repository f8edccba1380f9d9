"""Where judgements are: ``judgements/NAME/`` in the run folder, a log of answers each (`fastgen.asking.asker`).

::

    judgements/NAME/answers/        the log; a line's number is a slot (see `fastgen.judging.slots`)
    judgements/NAME/summary.json    the figures when the last session ended, for `fastgen status`; may be deleted
    judgements/server.log           output of a server that fastgen started to judge

The first line of the log says what the judgements mean: the run, the judge's model, the prompt's version, the sampling
and the salt of the codes.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from fastgen.asking.asker import read_meaning
from fastgen.errors import InputError, RunFolderError

KIND: Final = "judgements"
_FLAGS: Final = {
    "model": "--model",
    "api": "--api",
    "temperature": "--temperature",
    "top_p": "--top-p",
    "max_tokens": "--max-tokens",
    "extra_body": "--extra-body",
}


def judgements_folder(run_dir: Path) -> Path:
    """The folder of all judgements of a run."""
    return run_dir / "judgements"


def default_name(model: str) -> str:
    """A name for the judgements of a model, such as ``Qwen-Qwen3-8B``."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", model).strip("-._") or "judge"


def judge_names(run_dir: Path) -> list[str]:
    """The names of what was judged so far, sorted; empty where nothing was.

    :raises RunFolderError: the folder cannot be read. :raises DamagedLogError: the beginning of a log is damaged.
    """
    folder = judgements_folder(run_dir)
    try:
        found = sorted(path for path in folder.iterdir() if path.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise RunFolderError(f"{folder}: cannot be read ({error.strerror})") from None
    return [path.name for path in found if (read_meaning(path) or {}).get("kind") == KIND]


def settle_meaning(folder: Path, asked: Mapping[str, Any]) -> dict[str, Any]:
    """``asked`` with the salt of what is there already, or with a new one.

    :raises InputError: what is there was asked otherwise, and judgements are not mixed.
    """
    saved = read_meaning(folder)
    if saved is None:
        return {"kind": KIND, **asked, "salt": secrets.token_hex(16)}
    if saved.get("run") != asked["run"]:
        raise InputError(f"{folder}: holds judgements of another run; move that folder away")
    for key in sorted(asked):
        if saved.get(key) != asked[key]:
            what = _FLAGS.get(key, f"the {key}")
            raise InputError(
                f"{folder}: was judged with {what} {saved.get(key)}, not {asked[key]}; leave that as it was, or give "
                "these judgements another --name"
            )
    return {"kind": KIND, **asked, "salt": saved["salt"]}
