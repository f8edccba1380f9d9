"""A log whose end is not what was synced, one that was cut short, and one whose files were taken away."""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import orjson
import pytest
import zstandard

from fastgen.cli import app as cli
from fastgen.errors import DamagedLogError, DiskError, FolderInUse
from fastgen.generate.checkpoint import write_archive
from fastgen.generate.options import JobOptions, Options, ServerOptions
from fastgen.generate.run import Place, generate
from fastgen.generate.runtime import Stopper
from fastgen.methods.base import Commit, Labelled
from fastgen.simulator.server import FaultServer
from fastgen.store.ledger import Ledger
from fastgen.store.log import LogWriter, Position, TornTail, compress_segment, read_log, seal, segment_files
from fastgen.store.run_folder import RunFolder, Store
from fastgen.telemetry.figures import Sample
from fastgen.telemetry.progress import QuietReporter
from fastgen.telemetry.series import MetricsFile
from fastgen.types import Completion

RUN = "a-run"
GENERATE = ["generate", "--num-instructions", "99", "--base-url", "http://127.0.0.1:9/v1", "--quiet"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 12 instructions; copy it before use."""
    run = tmp_path_factory.mktemp("damage") / "run"

    async def main() -> None:
        async with FaultServer() as server:
            options = Options(job=JobOptions(num_instructions=12), server=ServerOptions(base_url=(server.base_url,)))
            await generate(Place(run, run), options, QuietReporter(), Stopper(QuietReporter()))

    asyncio.run(main())
    return run


def commit(number: int) -> Commit:
    completion = Completion("No", "stop", 50, 1)
    return Commit(number, 0, "classification", 0, (), completion, Labelled(False), 11.0)


def begin(path: Path, count: int) -> Store:
    store = Store(RunFolder(path))
    store.begin({"model": "m", "preset": "default"}, {"num_instructions": 5}, "0")
    list(store.replay())
    append(store, 0, count)
    return store


def append(store: Store, first: int, count: int) -> None:
    for number in range(first, first + count):
        store.append([commit(number)])
        store.ledger.apply(commit(number))


def logged(path: Path) -> list[int]:
    return [commit.request for commit in RunFolder(path).whole_commits()]


# -- the end of a log that was synced ----------------------------------------------------------------------------------


def flipped_newline(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def zeroed_tail(content: bytes) -> bytes:
    return content[:-300] + bytes(300)


def overwritten(content: bytes) -> bytes:
    return content[: content.rindex(b"\n", 0, -1) + 1] + b"x" * 5000


@pytest.mark.parametrize("damage", [flipped_newline, zeroed_tail, overwritten])
def test_a_changed_synced_end_of_the_log_is_named_by_every_command(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[bytes], bytes]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    segment = run / "log" / "000000.jsonl"
    damaged = damage(segment.read_bytes())
    segment.write_bytes(damaged)
    line = damaged.count(b"\n") + 1
    rows = tmp_path / "rows.jsonl"
    for command in (["status"], ["status", "--json"], ["export", "--output", str(rows)], GENERATE):
        assert cli.run([*command, "--run-dir", str(run)]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert f"log/000000.jsonl:{line}: the line was whole when the log was last synced" in said
        assert "ledger.json" in said
    assert not rows.exists()
    assert segment.read_bytes() == damaged
    segment.write_bytes(damaged[: damaged.rindex(b"\n") + 1])  # the remedy that the message names
    (run / "ledger.json").unlink()
    assert cli.run(["export", "--run-dir", str(run), "--output", str(rows)]) == 0


def test_a_tail_that_was_never_synced_is_torn_whatever_a_power_cut_made_of_it(tmp_path: Path) -> None:
    path = tmp_path / "run"
    store = begin(path, 3)
    store.sync()
    append(store, 3, 3)
    store.save_ledger()  # counts more than is on the disk
    shutil.copytree(path, tmp_path / "cut")
    store.close()
    segment = tmp_path / "cut" / "log" / "000000.jsonl"
    lines = segment.read_bytes().splitlines(keepends=True)
    segment.write_bytes(b"".join(lines[:4]) + bytes(sum(map(len, lines[4:]))))
    again = Store(RunFolder(tmp_path / "cut"))
    assert [c.request for c in again.replay()] == [0, 1, 2]
    assert again.torn is not None
    assert again.lost_commits == 3
    append(again, 7, 9)
    again.close()
    assert logged(tmp_path / "cut") == [0, 1, 2, *range(7, 16)]


def test_counts_that_a_log_fell_short_of_are_replaced_before_new_lines_reach_their_place(tmp_path: Path) -> None:
    path = tmp_path / "run"
    begin(path, 6).close()
    segment = path / "log" / "000000.jsonl"
    segment.write_bytes(b"".join(segment.read_bytes().splitlines(keepends=True)[:3]))
    again = Store(RunFolder(path))
    list(again.replay())
    append(again, 100, 20)
    shutil.copytree(path, tmp_path / "killed")  # before the counts are saved again
    again.close()
    with (tmp_path / "killed" / "log" / "000000.jsonl").open("ab") as file:
        file.write(b'{"crc":"0')
    assert logged(tmp_path / "killed") == [0, 1, *range(100, 120)]


def test_an_emptied_last_segment_is_reported_with_the_number_of_commits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(LogWriter.__init__.__kwdefaults__ or {}, "segment_bytes", 1000)
    path = tmp_path / "run"
    begin(path, 25).close()
    number, last = segment_files(path / "log")[-1]
    assert number > 0
    lines = last.read_bytes().splitlines(keepends=True)
    for left in (b"", lines[0]):  # nothing, and the header alone
        last.write_bytes(left)
        copy = tmp_path / f"copy-{len(left)}"
        shutil.copytree(path, copy)
        caplog.clear()
        assert RunFolder(copy).ledger().commits == 25 - (len(lines) - 1)
        assert f"{len(lines) - 1} commits" in caplog.text
        store = Store(RunFolder(copy))
        list(store.replay())
        store.close()
        assert store.lost_commits == len(lines) - 1
        assert store.lost_bytes == sum(map(len, lines))


# -- segments that are not what they should be -------------------------------------------------------------------------


def write(directory: Path, count: int, segment_bytes: int) -> None:
    writer = LogWriter(directory, run_id=RUN, end=None, segment_bytes=segment_bytes)
    for number in range(count):
        if writer.segment_full:
            writer.roll()
        writer.append([{"n": number}])
    writer.close()


def read(directory: Path) -> list[int]:
    return [i[0]["n"] for i in read_log(directory, run_id=RUN) if not isinstance(i, TornTail)]


@pytest.mark.parametrize("content", [b"", zstandard.compress(b""), b"\x28\xb5"])
def test_an_empty_compressed_segment_is_an_error_of_one_line(tmp_path: Path, content: bytes) -> None:
    log = tmp_path / "log"
    write(log, 30, 300)
    plain = segment_files(log)[0][1]
    plain.with_name(plain.name + ".zst").write_bytes(content)
    plain.unlink()
    with pytest.raises(DamagedLogError, match=r"000000\.jsonl\.zst: ") as caught:
        read(log)
    assert "\n" not in str(caught.value)


def test_odd_names_in_the_log_folder_are_no_segments(tmp_path: Path) -> None:
    log = tmp_path / "log"
    write(log, 3, 1 << 20)
    for name in (
        "²².jsonl",
        "000001.jsonl.bak",
        "1.jsonl",
        "0000001.jsonl",
        "٠٠٠٠٠١.jsonl",
        ".jsonl",
        "9" * 200 + ".jsonl",
    ):
        (log / name).write_bytes(b"x")
    (log / os.fsdecode(b"\xff.jsonl")).write_bytes(b"x")
    assert [path.name for _, path in segment_files(log)] == ["000000.jsonl"]
    assert read(log) == [0, 1, 2]


def test_a_line_with_a_right_checksum_that_is_not_json_is_named(tmp_path: Path) -> None:
    log = tmp_path / "log"
    write(log, 1, 1 << 20)
    path = log / "000000.jsonl"
    *_, end = [item[1] for item in read_log(log, run_id=RUN) if not isinstance(item, TornTail)]
    rest = b'"n":]}'
    line = b'{"crc":"%08x",%b\n' % (zlib.crc32(rest, end.crc), rest)
    path.write_bytes(path.read_bytes() + line)
    with pytest.raises(DamagedLogError, match=r"000000\.jsonl:3: the line is not JSON"):
        read(log)


def test_a_header_of_another_form_with_a_right_checksum_is_named(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.mkdir()
    (log / "000000.jsonl").write_bytes(seal({"format": "one", "run": RUN, "segment": 0}, 0)[0])
    with pytest.raises(DamagedLogError, match=r"000000\.jsonl:1: is not the header"):
        read(log)


LONG = """
import re, resource, sys
from pathlib import Path
from fastgen.errors import DamagedLogError
from fastgen.store.log import read_log
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
try:
    list(read_log(Path(sys.argv[1]), run_id="a-run"))
except DamagedLogError as error:
    print(error)
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])  # ru_maxrss counts the parent too
"""


def test_a_small_file_that_unpacks_to_an_endless_line_takes_little_time_and_memory(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.mkdir()
    size = 2 << 30
    packer = zstandard.ZstdCompressor().compressobj(size=size)
    with (log / "000000.jsonl.zst").open("wb") as sink:
        piece = b"x" * (16 << 20)
        for _ in range(size // len(piece)):
            sink.write(packer.compress(piece))
        sink.write(packer.flush())
    done = subprocess.run([sys.executable, "-c", LONG, log], capture_output=True, text=True, check=True)
    said, peak_kb = done.stdout.splitlines()
    assert "000000.jsonl.zst:1: the line is longer than any that fastgen writes" in said
    assert int(peak_kb) << 10 < size // 2  # the longest line that is read, and what goes with it


def test_a_place_in_the_log_is_taken_only_with_the_line_that_ends_there(tmp_path: Path) -> None:
    log = tmp_path / "log"
    write(log, 9, 1 << 20)
    ends = [item[1] for item in read_log(log, run_id=RUN) if not isinstance(item, TornTail)]
    for number, end in enumerate(ends):
        later = [item[1] for item in read_log(log, run_id=RUN, start=end) if not isinstance(item, TornTail)]
        assert later == ends[number + 1 :]
    wrong: list[Position] = [ends[4]._replace(crc=ends[3].crc), ends[4]._replace(offset=ends[4].offset - 1)]
    for start in wrong:
        with pytest.raises(DamagedLogError, match="is not the one that was read before"):
            list(read_log(log, run_id=RUN, start=start))


# -- a writer that lost its files --------------------------------------------------------------------------------------


def test_a_writer_whose_lock_was_removed_stops_and_no_second_one_gets_in(tmp_path: Path) -> None:
    path = tmp_path / "run"
    first = begin(path, 3)
    (path / "lock").unlink()
    second = Store(RunFolder(path))
    with pytest.raises(FolderInUse, match="another process writes this log"):
        list(second.replay())
    second.close()
    append(first, 3, 2)
    with pytest.raises(DiskError, match="lock was removed or replaced") as caught:
        first.sync()
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)
    first.close()
    assert logged(path) == [0, 1, 2, 3, 4]
    third = Store(RunFolder(path))
    assert len(list(third.replay())) == 5
    third.close()


@pytest.mark.parametrize("replaced", [False, True])
def test_a_writer_whose_segment_was_removed_or_replaced_stops(tmp_path: Path, replaced: bool) -> None:
    path = tmp_path / "run"
    store = begin(path, 3)
    store.sync()
    segment = path / "log" / "000000.jsonl"
    content = segment.read_bytes()
    segment.unlink()
    if replaced:
        segment.write_bytes(content)
    append(store, 3, 2)
    with pytest.raises(DiskError, match=r"000000\.jsonl: was removed or replaced") as caught:
        store.sync()
    assert caught.value.exit_code == 3
    with pytest.raises(DiskError, match="was removed or replaced"):
        store.close()
    Store(RunFolder(path)).close()


# -- links -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Path]:
    """Another user's file. Whatever happens to the links to it, it does not change."""
    path = tmp_path / "victim"
    path.write_bytes(b"of somebody else")
    yield path
    assert path.read_bytes() == b"of somebody else"


def test_links_under_the_names_of_temporary_files_are_replaced_and_not_followed(tmp_path: Path, victim: Path) -> None:
    path = tmp_path / "run"
    path.mkdir()
    (path / ".run.json.tmp").symlink_to(victim)
    store = begin(path, 3)
    (path / ".ledger.json.tmp").symlink_to(victim)
    (path / ".checkpoint.npz.tmp").symlink_to(victim)
    (path / "log" / "000000.jsonl.zst.tmp").symlink_to(victim)
    (path / "log" / ".000000.jsonl.zst.tmp").symlink_to(victim)
    store.save_ledger()
    write_archive(path / "checkpoint.npz", {}, {})
    compress_segment(path / "log" / "000000.jsonl")
    assert RunFolder(path).saved_counts().ledger.commits == 3
    names = ["ledger.json", "checkpoint.npz", "run.json", "log/000000.jsonl.zst"]
    assert not [name for name in names if (path / name).is_symlink()]
    with pytest.raises(DiskError, match="was removed or replaced"):  # its segment was compressed under it
        store.close()


def test_links_under_the_names_of_files_that_are_added_to_are_refused(
    tmp_path: Path, victim: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "run"
    path.mkdir()
    (path / "lock").symlink_to(victim)
    with pytest.raises(DiskError, match=r"cannot be written \(it is a symbolic link, remove it\)"):
        Store(RunFolder(path))
    (path / "lock").unlink()
    store = Store(RunFolder(path))
    (tmp_path / "elsewhere").mkdir()
    (path / "prompts").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DiskError, match=r"prompts: cannot be written \(it is a symbolic link"):
        store.folder.save_inputs(b"", {"base.toml": b""})
    assert not list((tmp_path / "elsewhere").iterdir())
    store.begin({}, {}, "0")
    (path / "log").mkdir()
    victim.write_bytes(b"")
    (path / "log" / "000000.jsonl").symlink_to(victim)
    with pytest.raises(DiskError, match=r"log: cannot be written \(it is a symbolic link"):
        list(store.replay())
    victim.write_bytes(b"of somebody else")
    store.close()
    (path / "metrics.jsonl").symlink_to(victim)
    MetricsFile(path).append(Sample(time_s=1.0))
    assert "symbolic link" in caplog.text


def test_a_pipe_in_the_place_of_the_lock_is_refused_and_does_not_block(tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.mkdir()
    os.mkfifo(path / "lock")
    with pytest.raises(DiskError, match="not a regular file"):
        Store(RunFolder(path))
    assert stat.S_ISFIFO((path / "lock").stat().st_mode)


# -- counts of others --------------------------------------------------------------------------------------------------


def test_a_run_that_logged_token_counts_of_any_size_is_read_resumed_and_counted(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As an older version wrote them: the log and the counts."""
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    segment = run / "log" / "000000.jsonl"
    crc, sealed = 0, []
    for line in segment.read_bytes().splitlines():
        body = orjson.loads(line)
        del body["crc"]
        if "tokens" in body:
            body["tokens"] = [(1 << 64) - 1, 1 << 62]
        again, crc = seal(body, crc)
        sealed.append(again)
    segment.write_bytes(b"".join(sealed))
    values = orjson.loads((run / "ledger.json").read_bytes())
    del values["crc"]
    values["position"] = [0, segment.stat().st_size, crc]
    values.pop("synced", None)
    values["counts"]["completion_tokens"] = {"instance": 1 << 63}
    (run / "ledger.json").write_bytes(seal(values, 0)[0])
    (run / "checkpoint.npz").unlink(missing_ok=True)
    assert cli.run(["status", "--json", "--run-dir", str(run)]) == 0
    figures = orjson.loads(capsys.readouterr().out)
    assert figures["complete"] == 12
    assert sum(figures["completion_tokens"].values()) == 0
    assert cli.run(["refilter", "--run-dir", str(run), "--output", str(tmp_path / "again")]) == 0
    store = Store(RunFolder(run))
    list(store.replay())
    store.save_ledger()
    store.close()
    assert RunFolder(run).saved_counts().ledger.complete == 12
    assert Ledger.from_dict(store.ledger.as_dict()) == store.ledger
