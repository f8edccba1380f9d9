"""The log: what is written is read, what is damaged is found, what is torn is dropped."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from fastgen.errors import DamagedLogError, DiskError, RunFolderError
from fastgen.store.log import LogWriter, Position, TornTail, compress_segment, read_log, seal, segment_files, unseal

RUN = "a-run"


def write(directory: Path, bodies: list[dict[str, Any]], *, segment_bytes: int = 1 << 20) -> None:
    end = None
    if directory.exists():
        *_, end = [None, *(item[1] for item in read_log(directory, run_id=RUN) if not isinstance(item, TornTail))]
    writer = LogWriter(directory, run_id=RUN, end=end, segment_bytes=segment_bytes)
    for body in bodies:
        if writer.segment_full:
            writer.roll()
        writer.append([body])
    writer.close()


def read(directory: Path) -> list[dict[str, Any]]:
    return [
        {k: v for k, v in item[0].items() if k != "crc"}
        for item in read_log(directory, run_id=RUN)
        if not isinstance(item, TornTail)
    ]


def numbered(count: int) -> list[dict[str, Any]]:
    return [{"n": n, "text": f"line {n} é"} for n in range(count)]


@given(
    st.dictionaries(st.text(max_size=5), st.text(max_size=20) | st.integers(-5, 5), max_size=4),
    st.integers(0, 2**32 - 1),
)
def test_any_flipped_bit_of_a_line_is_found(body: dict[str, Any], crc: int) -> None:
    line, sealed = seal(body | {"k": 1}, crc)
    assert unseal(line[:-1], crc) == sealed
    for place in range(len(line) - 1):
        flipped = bytearray(line[:-1])
        flipped[place] ^= 0x01
        assert unseal(bytes(flipped), crc) is None


def test_what_was_appended_is_read_back_over_several_sessions_and_segments(tmp_path: Path) -> None:
    log = tmp_path / "log"
    bodies = numbered(50)
    write(log, bodies[:20], segment_bytes=300)
    write(log, bodies[20:21], segment_bytes=300)
    write(log, bodies[21:], segment_bytes=300)
    assert read(log) == bodies
    assert len(segment_files(log)) > 3


def test_compressed_segments_read_the_same_and_can_be_started_from(tmp_path: Path) -> None:
    log = tmp_path / "log"
    write(log, numbered(30), segment_bytes=300)
    items = [item for item in read_log(log, run_id=RUN) if not isinstance(item, TornTail)]
    for _, path in segment_files(log)[:-1]:
        compress_segment(path)
    assert read(log) == numbered(30)
    start = items[10][1]
    assert [i[0]["n"] for i in read_log(log, run_id=RUN, start=start) if not isinstance(i, TornTail)] == [
        *range(11, 30)
    ]


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_torn_end_is_reported_dropped_and_overwritten(tmp_path: Path, cut: int) -> None:
    log = tmp_path / "log"
    write(log, numbered(5))
    path = log / "000000.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    torn = [item for item in read_log(log, run_id=RUN) if isinstance(item, TornTail)]
    assert len(torn) == 1
    assert read(log) == numbered(4)
    write(log, [{"n": "after"}])
    assert read(log) == [*numbered(4), {"n": "after"}]


def test_zeros_that_a_power_cut_left_at_the_end_count_as_torn(tmp_path: Path) -> None:
    log = tmp_path / "log"
    write(log, numbered(3))
    with (log / "000000.jsonl").open("ab") as file:
        file.write(bytes(4096))
    assert read(log) == numbered(3)


def test_a_flipped_byte_inside_a_string_is_named_with_file_and_line(tmp_path: Path) -> None:
    log = tmp_path / "log"
    write(log, numbered(9))
    path = log / "000000.jsonl"
    content = path.read_bytes()
    path.write_bytes(content.replace(b"line 4", b"line 5", 1))
    with pytest.raises(DamagedLogError, match=r"000000\.jsonl:6: the line does not match its checksum"):
        read(log)


@pytest.mark.parametrize("damage", ["drop", "swap", "double"])
def test_lost_swapped_and_doubled_lines_are_found(tmp_path: Path, damage: str) -> None:
    log = tmp_path / "log"
    write(log, numbered(6))
    path = log / "000000.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    if damage == "drop":
        del lines[3]
    elif damage == "swap":
        lines[3], lines[4] = lines[4], lines[3]
    else:
        lines.insert(3, lines[3])
    path.write_bytes(b"".join(lines))
    with pytest.raises(DamagedLogError):
        read(log)


def test_a_missing_segment_and_one_cut_short_in_the_middle_are_found(tmp_path: Path) -> None:
    log = tmp_path / "log"
    write(log, numbered(30), segment_bytes=300)
    middle = segment_files(log)[1][1]
    whole = middle.read_bytes()
    middle.write_bytes(whole[:-1])
    with pytest.raises(DamagedLogError, match="cut short"):
        read(log)
    middle.unlink()
    with pytest.raises(DamagedLogError, match="segment 000001 is missing"):
        read(log)


def test_a_damaged_compressed_segment_is_an_error_of_one_line(tmp_path: Path) -> None:
    log = tmp_path / "log"
    write(log, numbered(30), segment_bytes=300)
    path = segment_files(log)[0][1]
    compress_segment(path)
    packed = path.with_name(path.name + ".zst")
    content = bytearray(packed.read_bytes())
    content[len(content) // 2] ^= 0xFF
    packed.write_bytes(content)
    with pytest.raises(DamagedLogError) as caught:
        read(log)
    assert "\n" not in str(caught.value)


def test_a_segment_of_another_run_or_a_newer_format_is_refused(tmp_path: Path) -> None:
    log = tmp_path / "log"
    write(log, numbered(2))
    with pytest.raises(DamagedLogError, match="another run"):
        list(read_log(log, run_id="another"))
    header, _ = seal({"format": 99, "run": RUN, "segment": 0}, 0)
    (log / "000000.jsonl").write_bytes(header)
    with pytest.raises(RunFolderError, match="newer fastgen"):
        read(log)


def test_a_crash_while_rolling_over_loses_nothing(tmp_path: Path) -> None:
    log = tmp_path / "log"
    write(log, numbered(4))
    (log / "000001.jsonl").write_bytes(b'{"crc":"0000')
    (log / "000000.jsonl.zst.tmp").write_bytes(b"half")
    write(log, [{"n": "after"}])
    assert read(log) == [*numbered(4), {"n": "after"}]
    assert [path.name for path in sorted(log.iterdir())] == ["000000.jsonl"]


def test_resuming_after_the_last_segment_was_compressed_starts_a_new_one(tmp_path: Path) -> None:
    log = tmp_path / "log"
    write(log, numbered(4))
    compress_segment(log / "000000.jsonl")
    write(log, [{"n": "after"}])
    assert read(log) == [*numbered(4), {"n": "after"}]


def test_a_write_that_fails_half_way_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    writer = LogWriter(log, run_id=RUN, end=None)
    writer.append([{"n": 1}])
    real_write = os.write
    calls = iter([3])

    def short_write(descriptor: int, data: bytes) -> int:
        if (room := next(calls, None)) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real_write(descriptor, data[:room])

    monkeypatch.setattr(os, "write", short_write)
    with pytest.raises(DiskError, match="No space left"):
        writer.append([{"n": 2}])
    monkeypatch.undo()
    writer.append([{"n": 3}])
    writer.close()
    assert read(log) == [{"n": 1}, {"n": 3}]


def test_a_real_process_that_meets_a_size_limit_leaves_only_whole_lines(tmp_path: Path) -> None:
    log = tmp_path / "log"
    script = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from fastgen.errors import DiskError; from fastgen.store.log import LogWriter\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        f"writer = LogWriter(Path({str(log)!r}), run_id={RUN!r}, end=None)\n"
        "try:\n"
        "    for n in range(1000): writer.append([{'n': n, 'text': 'x' * 100}])\n"
        "except DiskError as error: print(error); sys.exit(error.exit_code)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert "File too large" in done.stdout
    lines = read(log)
    assert len(lines) > 20
    assert [line["n"] for line in lines] == [*range(len(lines))]
    assert not [item for item in read_log(log, run_id=RUN) if isinstance(item, TornTail)]


def test_positions_name_the_place_after_each_line(tmp_path: Path) -> None:
    log = tmp_path / "log"
    write(log, numbered(3))
    ends = [item[1] for item in read_log(log, run_id=RUN) if not isinstance(item, TornTail)]
    assert ends[-1] == Position(0, (log / "000000.jsonl").stat().st_size, ends[-1].crc)


def test_a_log_that_cannot_be_looked_into_is_no_empty_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    write(log, numbered(3))
    path = segment_files(log)[0][1]
    path.unlink()
    path.mkdir()
    with pytest.raises(RunFolderError, match=r"000000\.jsonl: cannot be read \(Is a directory\)"):
        read(log)
    path.rmdir()
    log.rmdir()
    log.write_text("no folder")
    with pytest.raises(RunFolderError, match=r"log: cannot be read \(Not a directory\)"):
        segment_files(log)
    log.unlink()
    assert segment_files(log) == [], "a run that was begun and has no log yet"


def test_fewer_segments_than_there_were_are_noticed_also_at_the_end(tmp_path: Path) -> None:
    log = tmp_path / "log"
    write(log, numbered(30), segment_bytes=300)
    count = len(segment_files(log))
    list(read_log(log, run_id=RUN, at_least=count))
    segment_files(log)[-1][1].unlink()
    with pytest.raises(DamagedLogError, match=f"segment {count - 1:06d} is missing"):
        list(read_log(log, run_id=RUN, at_least=count))


def test_a_start_behind_the_end_is_an_error_and_not_an_empty_rest(tmp_path: Path) -> None:
    log = tmp_path / "log"
    write(log, numbered(5))
    *_, (_, end) = [item for item in read_log(log, run_id=RUN) if not isinstance(item, TornTail)]
    assert list(read_log(log, run_id=RUN, start=end)) == []
    with pytest.raises(DamagedLogError, match="is shorter than when it was last read"):
        list(read_log(log, run_id=RUN, start=end._replace(offset=end.offset + 1)))


def test_a_segment_that_is_compressed_while_it_is_about_to_be_read_is_read_all_the_same(tmp_path: Path) -> None:
    log = tmp_path / "log"
    write(log, numbered(30), segment_bytes=300)
    lines = read_log(log, run_id=RUN)
    first = next(lines)
    for _, path in segment_files(log)[:-1]:
        compress_segment(path)
    rest = [item for item in [first, *lines] if not isinstance(item, TornTail)]
    assert [body["n"] for body, _ in rest] == [*range(30)]


def test_a_segment_that_vanishes_while_it_is_about_to_be_read_is_named(tmp_path: Path) -> None:
    log = tmp_path / "log"
    write(log, numbered(30), segment_bytes=300)
    lines = read_log(log, run_id=RUN)
    next(lines)
    segment_files(log)[1][1].unlink()
    with pytest.raises(RunFolderError, match=r"000001\.jsonl\.zst: cannot be read"):
        list(lines)


@pytest.mark.parametrize("keep", [0.3, 0.97])
def test_a_compressed_segment_that_lost_its_end_is_damage_and_no_torn_end(tmp_path: Path, keep: float) -> None:
    log = tmp_path / "log"
    write(log, numbered(400))
    compress_segment(log / "000000.jsonl")
    packed = log / "000000.jsonl.zst"
    content = packed.read_bytes()
    packed.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(DamagedLogError, match=r"000000\.jsonl\.zst"):
        read(log)


def test_a_compressed_segment_that_ends_after_a_whole_line_too_early_is_damage(tmp_path: Path) -> None:
    log = tmp_path / "log"
    write(log, numbered(40))
    plain = log / "000000.jsonl"
    compress_segment(plain)
    packed = log / "000000.jsonl.zst"
    whole = zstandard.ZstdDecompressor().decompress(packed.read_bytes())
    shorter = b"".join(whole.splitlines(keepends=True)[:-1])
    frame = zstandard.ZstdCompressor().compressobj(size=len(whole))
    packed.write_bytes(frame.compress(shorter) + frame.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK))
    with pytest.raises(DamagedLogError, match="cut short"):
        read(log)


def test_a_full_disk_leaves_no_half_compressed_segment_and_the_plain_one_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    write(log, numbered(30))

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskError, match="No space left"):
        compress_segment(log / "000000.jsonl")
    assert [path.name for path in log.iterdir()] == ["000000.jsonl"]
    assert read(log) == numbered(30)


def test_a_sync_that_failed_is_not_taken_for_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = LogWriter(tmp_path / "log", run_id=RUN, end=None)
    writer.append([{"n": 1}])
    calls: list[int] = []

    def broken(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 1:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", broken)
    with pytest.raises(DiskError, match="Input/output error"):
        writer.sync()
    writer.sync()
    writer.sync()
    assert len(calls) == 2, "once in vain, once with success"
    writer.close()


def test_what_is_appended_while_a_sync_runs_is_synced_by_the_next_and_close_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = LogWriter(tmp_path / "log", run_id=RUN, end=None)
    writer.append([{"n": 1}])
    began, go_on = threading.Event(), threading.Event()
    synced: list[int] = []

    def slow(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_size)
        began.set()
        assert go_on.wait(20)

    monkeypatch.setattr(os, "fdatasync", slow)
    beside = threading.Thread(target=writer.sync)
    beside.start()
    assert began.wait(20)
    writer.append([{"n": 2}])
    closing = threading.Thread(target=writer.close)
    closing.start()
    assert os.fstat(writer._file).st_size == writer.position.offset, "not closed under the other thread's sync"
    go_on.set()
    beside.join(20)
    closing.join(20)
    assert synced[-1] == writer.position.offset
    assert len(synced) == 2
    assert read(tmp_path / "log") == [{"n": 1}, {"n": 2}]


def test_a_segment_is_synced_before_the_next_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = LogWriter(tmp_path / "log", run_id=RUN, end=None)
    events: list[tuple[str, int]] = []
    real_write, real_sync = os.write, os.fdatasync

    def write_and_tell(descriptor: int, data: bytes) -> int:
        events.append(("write", os.fstat(descriptor).st_ino))
        return real_write(descriptor, data)

    def sync_and_tell(descriptor: int) -> None:
        events.append(("sync", os.fstat(descriptor).st_ino))
        real_sync(descriptor)

    monkeypatch.setattr(os, "write", write_and_tell)
    monkeypatch.setattr(os, "fdatasync", sync_and_tell)
    old = os.fstat(writer._file).st_ino
    writer.append([{"n": 1}])
    writer.roll()
    new = os.fstat(writer._file).st_ino
    writer.close()
    assert events == [("write", old), ("sync", old), ("write", new), ("sync", new)]


def test_a_disk_that_cannot_read_is_an_error_of_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    write(log, numbered(3))

    def broken(_lines: object, _size: int) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("fastgen.store.log._blocks", broken)
    with pytest.raises(RunFolderError, match=r"000000\.jsonl: cannot be read \(Input/output error\)"):
        read(log)
