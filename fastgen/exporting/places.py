"""Where an export goes: one file, or a folder of several. Nothing half-written is ever seen under its name.

A file replaces what is there once it is whole (a pipe or a device is written to, a link stays and its target is
replaced); in a folder, what is there is replaced only when that was asked for. After an error nothing is left behind.
Knows nothing of rows.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Final

from fastgen.errors import DiskError, InputError

_NO_SUCH_PLACE: Final = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP)


@contextmanager
def one_file(output: Path) -> Iterator[tuple[IO[bytes], Path]]:
    """The file to write and a scratch folder on the same disk; ``-`` is standard output.

    :raises InputError: no such place. :raises DiskError: it cannot be written.
    """
    with ExitStack() as stack:
        stack.enter_context(_telling(output))
        if str(output) == "-":
            yield sys.stdout.buffer, _scratch(stack, None)
            sys.stdout.buffer.flush()
        elif output.exists() and not output.is_file():  # a pipe or a device: written to, never replaced
            yield stack.enter_context(output.open("wb")), _scratch(stack, None)
        else:
            target = Path(os.path.realpath(output))  # what a link points to; the link stays
            scratch = _scratch(stack, target.parent)
            whole = scratch / "whole"
            with whole.open("wb") as sink:
                yield sink, scratch
            whole.replace(target)


@contextmanager
def folder(output: Path, names: Sequence[str], *, overwrite: bool) -> Iterator[Path]:
    """A scratch folder; what is in it under ``names`` when the block ends is moved into ``output``, in that order.

    :raises InputError: no such place, or one of the names is taken and ``overwrite`` was not asked for.
    :raises DiskError: it cannot be written.
    """
    with ExitStack() as stack:
        stack.enter_context(_telling(output))
        _check_folder(output, names, overwrite=overwrite)
        stack.enter_context(_made(output))
        scratch = _scratch(stack, output)
        yield scratch
        for name in names:
            (scratch / name).replace(output / name)


def _check_folder(output: Path, names: Sequence[str], *, overwrite: bool) -> None:
    if str(output) == "-" or (output.exists() and not output.is_dir()):
        raise InputError(f"--output {output}: --split, --card and --push-to-hub need a folder; name a new one")
    if (output / "run.json").exists():
        raise InputError(f"--output {output}: is the folder of a run; name another folder")
    taken = [name for name in names if (output / name).exists() or (output / name).is_symlink()]
    if taken and not overwrite:
        raise InputError(
            f"--output {output}: has {' and '.join(taken)} already; name another folder, or replace with --overwrite"
        )


@contextmanager
def _made(output: Path) -> Iterator[None]:
    """The folder is there; it is gone again after an error, if nothing else came into it."""
    is_new = not output.exists()
    output.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        if is_new:
            with suppress(OSError):
                output.rmdir()
        raise


def _scratch(stack: ExitStack, parent: Path | None) -> Path:
    path = Path(tempfile.mkdtemp(prefix=".fastgen-", dir=parent))
    stack.callback(shutil.rmtree, path, ignore_errors=True)
    return path


@contextmanager
def _telling(output: Path) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise  # whoever read our output has enough; no fault of the disk's
    except OSError as error:
        kind = InputError if error.errno in _NO_SUCH_PLACE else DiskError
        raise kind(f"--output {output}: cannot be written ({error.strerror}); mend that or name another file") from None
