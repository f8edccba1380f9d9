"""The two files that ``fastgen dedup`` writes: names that make sense, never replaced unasked, named when whole.

Knows nothing of what is in them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from fastgen.errors import InputError
from fastgen.outputs import check_output, is_same_file
from fastgen.tables.table import as_disk_error, is_parquet

_COMPRESSED = frozenset({".gz", ".zst", ".bz2", ".xz"})
_JSON = frozenset({".jsonl", ".json", ".ndjson"})


class Outputs:
    """The two files: ``NAME.partial`` while they are written; ``journal_path`` is ``KEPT.dedup``.

    With ``overwrite`` finished files of these names are replaced, at the very end.
    """

    def __init__(self, kept: Path, rejected: Path, *, overwrite: bool) -> None:
        self._finals = {"--output": kept.resolve(), "--rejected": rejected.resolve()}
        self._overwrite = overwrite
        self.journal_path = self._finals["--output"].with_name(f"{self._finals['--output'].name}.dedup")
        self.partials = tuple(path.with_name(f"{path.name}.partial") for path in self._finals.values())

    def check_names(self, source: Path, against: Sequence[Path]) -> None:
        """Refuse names that cannot be meant.

        :raises InputError: one file in two roles, not a regular file, or a name of another format than is written.
        """
        for pool in against:
            if pool.resolve() == source.resolve():
                raise InputError(f"--against {pool}: is the input itself, so no row would be kept; name another file")
        taken = {source.resolve(), *(pool.resolve() for pool in against)}
        parquet = is_parquet(source)
        for flag, path in self._finals.items():
            if path in taken or any(is_same_file(path, other) for other in taken):
                raise InputError(f"{flag} {path}: is already the name of another file here; name a new one")
            check_output(flag, path)
            taken.add(path)
            if path.exists() and not path.is_file():
                raise InputError(f"{flag} {path}: is not a regular file; name a new one")
            _check_ending(flag, path, parquet=parquet)
        for flag, partial in zip(self._finals, self.partials, strict=True):
            if partial in taken or any(is_same_file(partial, other) for other in taken):
                raise InputError(
                    f"{flag}: fastgen writes {partial} first, which is another file of this command; name another"
                )

    def refuse_existing(self) -> None:
        """Never replace what nobody said could be replaced.

        :raises InputError: an output is there and ``overwrite`` was not given.
        """
        for flag, path in self._finals.items():
            if path.exists() and not self._overwrite:
                raise InputError(f"{flag} {path}: is already there; name another file, or replace it with --overwrite")

    def whole(self) -> bool:
        """Whether each file is there, under one name or the other."""
        return all(p.exists() or f.exists() for p, f in zip(self.partials, self._finals.values(), strict=True))

    def publish(self) -> None:
        """Give the finished files their names."""
        for partial, final in zip(self.partials, self._finals.values(), strict=True):
            with as_disk_error(final), contextlib.suppress(FileNotFoundError):  # has its name already
                partial.replace(final)

    def discard(self) -> None:
        """Remove what was begun."""
        for partial in self.partials:
            partial.unlink(missing_ok=True)


def _check_ending(flag: str, path: Path, *, parquet: bool) -> None:
    if path.suffix in _COMPRESSED:
        raise InputError(f"{flag} {path}: would not be compressed; leave out {path.suffix} and compress it afterwards")
    if path.suffix == ".parquet" and not parquet:
        raise InputError(f"{flag} {path}: the input is JSON lines, and so is what is written; name it .jsonl")
    if path.suffix in _JSON and parquet:
        raise InputError(f"{flag} {path}: the input is Parquet, and so is what is written; name it .parquet")
