"""Following a run's log for its live page: as it grows, rolls, is taken back, is damaged."""

from __future__ import annotations

from pathlib import Path

from fastgen.report.figures import gather
from fastgen.report.live_view import PIECES, STATE, TITLE, Follower, pieces
from fastgen.report.options import ReportOptions
from fastgen.store.log import compress_segment
from fastgen.store.reader import open_run
from fastgen.store.run_folder import RunFolder, Store
from tests.dashboard_help import read_all
from tests.export_help import Task, extend_run, make_run, numbered


def texts(follower: Follower) -> list[str]:
    assert follower.figures is not None
    return [one.instruction for one in follower.figures.newest_kept]


def described(*numbers: int) -> list[str]:
    return [f"Describe thing number {n} in plain words." for n in numbers]


def test_what_was_read_of_a_run_makes_the_figures_of_its_report(tmp_path: Path) -> None:
    follower = read_all(Follower(make_run(tmp_path / "run", numbered(12)), slice_commits=5))
    assert follower.figures is not None
    report = gather(open_run(tmp_path / "run"), ReportOptions())
    assert follower.ledger == report.ledger
    assert follower.figures.classification == report.classification == 4
    assert follower.figures.output_words.counts == report.output_words.counts
    assert follower.figures.seeds == report.seeds
    assert (follower.target, follower.threshold, follower.trouble) == (12, 0.7, None)
    assert texts(follower) == described(*range(12))


def test_a_slice_is_small_and_says_how_far_the_log_was_read(tmp_path: Path) -> None:
    follower = Follower(make_run(tmp_path / "run", numbered(12)), slice_commits=9)
    assert follower.read_more()
    assert follower.ledger.commits == 9
    assert follower.share_read == 0.25
    assert "9 answers of the log were read, about 25% of it" in pieces(follower, None, is_running=True)["now"]


def test_a_run_that_has_not_begun_is_waited_for(tmp_path: Path) -> None:
    follower = Follower(tmp_path / "run")
    assert not follower.read_more()
    assert pieces(follower, None, is_running=True)[STATE] == "waiting for the run to begin"
    (tmp_path / "run").mkdir()
    assert not follower.read_more()
    make_run(tmp_path / "run", numbered(2))
    assert read_all(follower).ledger.complete == 2
    assert follower.trouble is None


def test_a_log_is_followed_as_it_grows_rolls_and_is_compressed(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run", numbered(2))
    follower = read_all(Follower(path))
    store = Store(RunFolder(path))
    list(store.replay())
    closed = store.job.log.roll()
    store.close()
    extend_run(path, numbered(4, 2), 2)
    assert read_all(follower).ledger.complete == 4
    compress_segment(closed)
    extend_run(path, numbered(5, 4), 4)
    assert read_all(follower).ledger.complete == 5
    assert texts(follower) == described(*range(5))
    assert read_all(Follower(path)).ledger == follower.ledger


def test_what_is_being_written_counts_once_it_is_whole(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run", numbered(3))
    log = path / "log" / "000000.jsonl"
    whole = log.read_bytes()
    log.write_bytes(whole[:-20])
    follower = read_all(Follower(path))
    assert (follower.ledger.complete, follower.trouble) == (2, None)
    log.write_bytes(whole)
    assert (read_all(follower).ledger.complete, follower.trouble) == (3, None)


def test_commits_that_were_taken_back_vanish_from_the_figures(tmp_path: Path) -> None:
    """As after a power cut: the log's end was lost, and something else was written in its place."""
    path = make_run(tmp_path / "run", numbered(6))
    follower = read_all(Follower(path))
    log = path / "log" / "000000.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:10]))
    extend_run(path, [Task("Something else altogether.")], 3)
    assert read_all(follower).trouble is None
    assert texts(follower) == [*described(0, 1, 2), "Something else altogether."]
    log.write_bytes(b"".join(lines[:4]))
    assert texts(read_all(follower)) == described(0)


def test_damage_is_a_line_on_the_page_with_the_figures_up_to_there(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run", numbered(6))
    log = path / "log" / "000000.jsonl"
    whole = log.read_bytes()
    lines = whole.splitlines(keepends=True)
    lines[10] = lines[10].replace(b"Describe", b"Destroys")
    log.write_bytes(b"".join(lines))
    follower = read_all(Follower(path))
    for _ in range(2):  # seen again, it is the same
        assert not follower.read_more()
        shown = pieces(follower, None, is_running=False)
        assert f"{log}:11: the line does not match its checksum" in shown["now"]
        assert follower.ledger.complete == 3
        assert set(shown) == {*PIECES, STATE, TITLE}
    log.write_bytes(whole)
    assert read_all(follower).ledger.complete == 6
    assert follower.trouble is None


def test_a_folder_of_something_else_is_a_line_on_the_page(tmp_path: Path) -> None:
    (tmp_path / "letters.txt").write_text("Dear")
    follower = Follower(tmp_path)
    assert not follower.read_more()
    assert "holds files but no run" in pieces(follower, None, is_running=True)["now"]
