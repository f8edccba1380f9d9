"""Several runs: `fastgen runs`, which lists them, and `fastgen report --compare`, which puts two side by side."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from fastgen.errors import FolderInUse
from fastgen.generate.options import JobOptions, Options
from fastgen.report.runs import render, runs_below, summary_of
from fastgen.store.files import Lock, is_locked
from fastgen.store.run_folder import RunFolder, Store
from tests.command_help import chromium, fastgen
from tests.export_help import make_run, numbered
from tests.method_runs import make_method_run

LATER_S = 1e9 + 7200
"""Two hours after the last commit of the runs here."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Runs of every state, and what is no run."""
    make_run(tmp_path / "done", numbered(8))
    make_run(tmp_path / "deeper" / "short", numbered(5), replace(Options(), job=JobOptions(num_instructions=2000)))
    make_method_run(tmp_path / "chat", "magpie")
    damaged = make_run(tmp_path / "damaged", numbered(2))
    (damaged / "run.json").write_text((damaged / "run.json").read_text().replace("some-model", "some-modal"))
    (make_run(tmp_path / "deeper" / "unknown", numbered(3)) / "ledger.json").unlink()
    (tmp_path / "done" / "log" / "run.json").write_text("{}")  # no run within a run
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "run.json").write_text("{}")  # of another program
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path)
    return tmp_path


def test_runs_are_listed_by_path_with_their_states(folder: Path) -> None:
    lines = render(list(runs_below(folder)), folder, clock=lambda: LATER_S).splitlines()
    assert lines[0].split() == ["run", "state", "complete", "method", "model", "last", "answer"]
    assert [line.split()[0] for line in lines[1:]] == ["chat", "damaged", "deeper/short", "deeper/unknown", "done"]
    assert lines[5].split() == ["done", "done", *["8", "of", "8", "self-instruct", "some-model", "2", "h", "ago"]]
    assert "can be resumed  5 of 2,000" in lines[3]
    assert "can be resumed  ? of 3" in lines[4]
    assert lines[2].endswith("damaged/run.json: damaged; restore it from a copy")
    assert "magpie" in lines[1]


def test_the_command_prints_lines_or_an_object_for_each_run(folder: Path) -> None:
    said = fastgen("runs", folder)
    assert (said.code, len(said.out.splitlines())) == (0, 6)
    found = {
        Path(one["run_dir"]).name: one for one in map(orjson.loads, fastgen("runs", folder, "--json").out.splitlines())
    }
    assert {name: one["state"] for name, one in found.items()} == {
        **dict.fromkeys(("done", "chat"), "done"),
        **dict.fromkeys(("short", "unknown"), "resumable"),
        "damaged": "damaged",
    }
    done = found["done"]
    assert (done["complete"], done["kept"], done["target"], done["model"]) == (8, 8, 8, "some-model")
    assert (done["began_s"], done["last_s"], done["problem"]) == (1e9, 1e9, None)
    assert done["age_s"] > 0
    assert found["unknown"]["complete"] is None
    assert fastgen("runs", folder / "notes").out == f"{folder / 'notes'}: no runs there\n"
    said = fastgen("runs", folder / "nothing")
    assert (said.code, said.last) == (
        2,
        f"fastgen: {folder / 'nothing'}: is no folder; name the one that holds the runs",
    )


def test_a_run_that_is_written_is_running_and_looking_at_it_takes_nothing(folder: Path) -> None:
    path = folder / "deeper" / "short"
    store = Store(RunFolder(path))
    list(store.replay())
    assert summary_of(path).state == "running"
    store.close()
    assert summary_of(path).state == "resumable"


def test_logs_are_not_read(folder: Path) -> None:
    log = folder / "done" / "log" / "000000.jsonl"
    log.write_bytes(b"x" * log.stat().st_size)
    assert summary_of(folder / "done").state == "done"


def test_a_refilter_that_did_not_finish_is_damaged(folder: Path) -> None:
    (folder / "done" / "run.json").rename(folder / "done" / "unfinished-run.json")
    found = summary_of(folder / "done")
    assert (found.state, "did not finish" in found.problem) == ("damaged", True)
    assert found in list(runs_below(folder))


def test_hostile_names_are_shown_in_one_line(tmp_path: Path) -> None:
    make_run(tmp_path / "run", numbered(1), model="a\nb\x1b[31m\u202e")
    lines = fastgen("runs", tmp_path).out.splitlines()
    assert len(lines) == 2
    assert "a b\\x1b[31m\\u202e" in lines[1]


def test_a_lock_is_looked_at_without_being_taken(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    assert not is_locked(file)
    lock = Lock(file, named="here", instead="wait")
    assert is_locked(file)
    with pytest.raises(FolderInUse, match="in use by process"):
        Lock(file, named="here", instead="wait")
    lock.release()
    assert not is_locked(file)


# two runs side by side


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    options = replace(Options(), similarity=replace(Options().similarity, threshold=0.5))
    return make_run(tmp_path / "a", numbered(30)), make_run(tmp_path / "b", numbered(12), options, model="<b>bold</b>")


def test_the_figures_of_two_runs_are_those_of_each(pair: tuple[Path, Path]) -> None:
    said = fastgen("report", "--compare", *pair, "--json")
    assert said.code == 0, said.err
    found = json.loads(said.out)
    a, b = found["runs"]
    for side, path in ((a, pair[0]), (b, pair[1])):
        status = json.loads(fastgen("status", "--run-dir", path, "--json").out)
        for name in ("complete", "kept", "instances", "target", "model", "method", "acceptance", "rejected"):
            assert side[name] == status[name], name
        assert round(side["yield_per_1000_tokens"], 3) == status["yield_per_1000_tokens"]
    assert a["words"]["instruction"] == {"mean": 7.0, "median": 7, "p95": 7, "longest": 7}
    assert a["words"]["output"]["mean"] == 2.0
    assert (a["classification_share"], a["empty_input_share"]) == (0.3333, 0.5)
    assert found["settings"] == {"model": ["some-model", "<b>bold</b>"], "threshold": [0.7, 0.5]}


def test_variety_is_measured_on_as_many_words_of_each(pair: tuple[Path, Path]) -> None:
    a, b = (side["diversity"] for side in json.loads(fastgen("report", "--compare", *pair, "--json").out)["runs"])
    assert (a["words"], b["words"]) == (84, 84)
    assert a == b, "the first twelve instructions are the same"


def test_the_page_shows_both_and_escapes_what_others_wrote(pair: tuple[Path, Path], tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    said = fastgen("report", "--compare", *pair, "--output", page)
    assert (said.code, said.last) == (0, f"{page}: {pair[0]} and {pair[1]} side by side")
    text = page.read_text(encoding="utf-8")
    assert "<h1>a and b</h1>" in text
    assert "&lt;b&gt;bold&lt;/b&gt;" in text
    assert "<b>bold" not in text
    for section in ("counts", "rejections", "lengths", "novelty", "diversity", "settings"):
        assert f'<section id="{section}"' in text
    assert "too short</th><td>30 (50.0%)</td><td>12 (50.0%)</td>" in text
    again = fastgen("report", "--compare", *pair, "--output", page)
    assert (again.code, "is already there" in again.last) == (2, True)
    assert fastgen("report", "--compare", *pair, "--output", page, "--overwrite").code == 0


def test_runs_of_the_same_name_are_told_apart_and_an_empty_one_is_shown(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / part / "run", numbered(count)) for part, count in (("one", 3), ("other", 0))]
    said = fastgen("report", "--compare", *runs, "--output", tmp_path / "page.html")
    assert said.code == 0, said.err
    magpie = make_method_run(tmp_path / "chat", "magpie")
    found = json.loads(fastgen("report", "--compare", runs[1], magpie, "--json").out)
    assert found["runs"][0]["words"]["output"] is None
    assert found["runs"][1]["method"] == "magpie"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--compare", "A", "B"), "--output: with --compare, give either a file for the page or --json"),
        (("--compare", "A", "B", "--json", "--output", "x"), "--output: with --compare, give either"),
        (("--compare", "A", "B", "--json", "--run-dir", "A"), "--run-dir: --compare names the runs; leave it out"),
        (("--compare", "A", "B", "--json", "--sample", "3"), "--sample: belongs to the report of one run"),
        (("--compare", "A", "C", "--json"), "there is no run here"),
        (("--run-dir", "A", "--json"), "--json: is for --compare"),
        (("--run-dir", "A"), "--output: name the HTML file to write"),
        (("--output", "x"), "--run-dir: name the folder of the run"),
    ],
)
def test_flags_that_do_not_fit_are_refused_in_one_line(
    pair: tuple[Path, Path], flags: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(pair[0].parent)
    found = fastgen("report", *(flag.lower() if len(flag) == 1 else flag for flag in flags))
    assert (found.code, said in found.last) == (2, True), found.err


@pytest.mark.browser
def test_the_page_is_drawn_without_errors(pair: tuple[Path, Path], tmp_path: Path) -> None:
    fastgen("report", "--compare", *pair, "--output", tmp_path / "page.html")
    with chromium() as browser:
        page = browser.new_page()
        problems: list[str] = []
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto((tmp_path / "page.html").as_uri())
        assert page.locator("svg.plot").count() == 10
        assert problems == []
