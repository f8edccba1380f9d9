"""Files that a command writes where the user says: which places are refused, and how a file gets its name.

Guarantees:

- A command never writes into what it reads, nor into the folder of a run.
- An existing file is replaced only with ``overwrite``.
- A file gets its name once it is whole. A pipe or a device is written to directly. A link stays, and its target is
  replaced.
- After an error nothing is left behind. What a killed process left is removed by the next one that writes to the same
  folder.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Final

import orjson

from fastgen.errors import DiskError, InputError

STDOUT: Final = "-"
"""The ``--output`` that is standard output, where a command offers it."""

_NO_SUCH_PLACE: Final = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP)
_SCRATCH: Final = ".fastgen-"
_SCRATCH_NAME: Final = re.compile(r"\.fastgen-[a-z0-9_]{8}")  # as `tempfile.mkdtemp` makes it
# Characters that JSON allows and that other tools take for a line end or a control: C1 controls (also U+0085),
# U+2028 and U+2029, and the bidirectional embeddings, overrides and isolates.
_UNSAFE: Final = re.compile(rb"\xc2[\x80-\x9f]|\xe2(?:\x80[\xa8-\xae]|\x81[\xa6-\xa9])")


def json_line(value: Any) -> bytes:  # noqa: ANN401 - any JSON value
    """The value as one line of JSON with its end, escaped by `escape_line`. Loads to the same value."""
    return escape_line(orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE))


def escape_line(line: bytes) -> bytes:
    r"""JSON with ``\uXXXX`` in place of every character that other tools take for a line end or a control."""
    if line.isascii() or not (b"\xc2" in line or b"\xe2" in line):  # much faster than the expression
        return line
    return _UNSAFE.sub(lambda found: b"\\u%04x" % ord(found[0].decode()), line)


def check_output(flag: str, output: Path, inputs: Iterable[Path] = (), *, overwrite: bool = True) -> None:
    """Refuse a file or folder that must not be written. Call it before anything is read.

    A file is recognised through links, hard links and ``..``. Standard output (``-``), a pipe and a device are always
    allowed.

    :param flag: the option that named the output. :param inputs: files and folders that the command reads.
    :param overwrite: whether an existing file may be replaced.
    :raises InputError: the output is one of the inputs, lies in one, holds one, or lies in the folder of a run; or it
        exists and may not be replaced.
    """
    with _output_errors(output, flag):
        if str(output) == STDOUT or (output.exists() and not output.is_file() and not output.is_dir()):
            return
        target = Path(os.path.realpath(output))
        for folder in (target, *target.parents):
            if (folder / "run.json").is_file() and (folder / "log").is_dir():
                raise InputError(f"{flag} {output}: is in the folder of a run, {folder}; name a place outside it")
        for given in inputs:
            source = Path(os.path.realpath(given))
            if is_same_file(target, source):
                raise InputError(f"{flag} {output}: is {given}, which this command reads; name another place")
            if source in target.parents or _is_linked_from(source, target):
                raise InputError(
                    f"{flag} {output}: is part of {given}, which this command reads; name a place outside it"
                )
            if target in source.parents:
                raise InputError(f"{flag} {output}: holds {given}, which this command reads; name another place")
        if not overwrite and output.is_file():
            raise InputError(f"{flag} {output}: is already there; name another file, or replace it with --overwrite")


def is_same_file(one: Path, other: Path) -> bool:
    """Whether both names lead to one file, links included."""
    try:
        return one == other or one.samefile(other)
    except OSError:  # one of them is not there
        return False


def _is_linked_from(folder: Path, file: Path) -> bool:
    """Whether a file in the folder, or in one below it, is a hard link of ``file``."""
    try:
        found = file.stat()
    except OSError:
        return False
    if found.st_nlink < 2 or not file.is_file():  # noqa: PLR2004 - it has a second name
        return False
    names = (Path(parent) / name for parent, _, files in os.walk(folder) for name in files)
    return any(is_same_file(path, file) for path in names)


@contextmanager
def output_file(output: Path, *, overwrite: bool = False) -> Iterator[tuple[IO[bytes], Path]]:
    """The file to write and a scratch folder on the same disk. ``-`` is standard output.

    :raises InputError: no such place, or the file exists and ``overwrite`` is false.
    :raises DiskError: it cannot be written.
    """
    with ExitStack() as stack:
        stack.enter_context(_output_errors(output))
        if str(output) == STDOUT:
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
            check_output("--output", output, overwrite=overwrite)  # it may have been made meanwhile
            whole.replace(target)


@contextmanager
def output_folder(output: Path, names: Sequence[str], *, overwrite: bool) -> Iterator[Path]:
    """A scratch folder. When the block ends, its files of these names are moved into ``output``, in that order.

    :raises InputError: no such place, or one of the names is taken and ``overwrite`` is false.
    :raises DiskError: it cannot be written.
    """
    with ExitStack() as stack:
        stack.enter_context(_output_errors(output))
        check_output_folder(output, names, overwrite=overwrite)
        stack.enter_context(_made(output))
        scratch = _scratch(stack, output)
        yield scratch
        check_output_folder(output, names, overwrite=overwrite)
        for name in names:
            (scratch / name).replace(output / name)


def write_folder(what: str, folder: Path, contents: Mapping[str, bytes], *, overwrite: bool) -> None:
    """Write files, by name, into a folder that is new or empty.

    :param what: the argument that named the folder. :param overwrite: whether the folder may have files, of which
        those of the same names are replaced.
    :raises InputError: no such place, or the folder has files and ``overwrite`` is false.
    :raises DiskError: it cannot be written.
    """
    with ExitStack() as stack:
        stack.enter_context(_output_errors(folder, what))
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{what} {folder}: is no folder; name a new one")
        check_output(what, folder)
        if not overwrite and folder.exists() and any(folder.iterdir()):
            raise InputError(f"{what} {folder}: is not empty; name a new folder, or replace its files with --overwrite")
        stack.enter_context(_made(folder))
        scratch = _scratch(stack, folder)
        for name, content in contents.items():
            (scratch / name).write_bytes(content)
        for name in contents:
            (scratch / name).replace(folder / name)


def check_output_folder(output: Path, names: Sequence[str], inputs: Iterable[Path] = (), *, overwrite: bool) -> None:
    """Refuse a folder that files of these names cannot be written into.

    :raises InputError: it is no folder, as `check_output`, or one of the names is taken.
    """
    with _output_errors(output):
        is_folder = str(output) != STDOUT and (output.is_dir() or not output.exists())
    if not is_folder:
        raise InputError(f"--output {output}: --split, --card and --push-to-hub need a folder; name a new one")
    for name in names:
        check_output("--output", output / name, inputs)
    taken = [name for name in names if (output / name).exists() or (output / name).is_symlink()]
    if taken and not overwrite:
        raise InputError(
            f"--output {output}: has {' and '.join(taken)} already; name another folder, or replace with --overwrite"
        )


@contextmanager
def _made(output: Path) -> Iterator[None]:
    """The folder exists. If it is new, an error removes it, unless it has other files."""
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
    """A new folder, locked while this process uses it. Folders of processes that have ended are removed first."""
    parent = parent or Path(tempfile.gettempdir())
    for path in parent.glob(f"{_SCRATCH}*"):
        if _SCRATCH_NAME.fullmatch(path.name):
            with suppress(OSError), _locked(path):
                shutil.rmtree(path, ignore_errors=True)
    while True:
        path = Path(tempfile.mkdtemp(prefix=_SCRATCH, dir=parent))
        stack.callback(shutil.rmtree, path, ignore_errors=True)
        try:
            stack.enter_context(_locked(path))
        except (BlockingIOError, FileNotFoundError):  # another process has just removed it as a left-over
            continue
        except OSError:  # a file system without locks: no process removes what another left
            pass
        if path.exists():
            return path


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Lock the folder.

    :raises OSError: another process has it, or it cannot be locked.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _output_errors(output: Path, flag: str = "--output") -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise  # the reader of our output has ended; no fault of the disk
    except OSError as error:
        kind = InputError if error.errno in _NO_SUCH_PLACE else DiskError
        raise kind(
            f"{flag} {output}: cannot be written ({error.strerror}); make room or check the permissions, or name "
            f"another file"
        ) from None
