"""The Python API: runs against the shipped server, in this process and, where signals matter, in others."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import orjson
import pytest

import fastgen
from fastgen.api import _ONLY_COMMAND, Run
from fastgen.errors import BackendUnavailable, InputError, how_to_install
from fastgen.export.options import FORMATS
from fastgen.generate.options import Options
from fastgen.store.run_folder import RunFolder
from fastgen.telemetry.progress import Progress
from tests import command_help
from tests.export_help import Task, make_run, numbered
from tests.generate.test_generate import shipped_server
from tests.method_runs import OTHER_METHODS, make_method_run

MANY = 1_000_000
"""More instructions than any test waits for."""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with shipped_server("--latency", "0.01") as base_url:
        yield base_url


def ids(rows: Any) -> list[str]:
    return [f"{row['id']} {row['instance']}" for row in rows]


# making runs


def test_a_run_is_made_and_its_progress_is_given_to_a_function_in_this_thread(server: str, tmp_path: Path) -> None:
    seen: list[tuple[Progress, threading.Thread]] = []
    run = fastgen.generate(
        str(tmp_path / "run"),
        base_url=server,
        num_instructions=15,
        progress=lambda progress: seen.append((progress, threading.current_thread())),
    )
    assert (run.counts.complete, run.counts.target, run.state, run.ended_by) == (15, 15, "done", None)
    assert (run.model, run.method) == ("test-model-base", "self-instruct")
    assert seen[-1][0].complete == 15
    assert {thread for _, thread in seen} == {threading.current_thread()}
    assert run.figures["complete"] == 15
    assert len({row["id"] for row in run.rows()}) == 15


def test_keywords_are_the_flags(server: str, tmp_path: Path) -> None:
    (tmp_path / "topics.txt").write_text("rivers\nbread\n")
    fastgen.generate(
        tmp_path / "by keyword",
        base_url=[server],
        num_instructions=3,
        seed=5,
        topics=tmp_path / "topics.txt",
        instruction={"temperature": 0.5, "top_p": 0.9, "stop": ["\n20", "\n21"]},
        extra_body={"min_p": 0.01},
        banned_starts=("write", "draw"),
        concurrency=2,
        model_preset="none",
        progress=False,
    )
    flags = ["--instruction.temperature=0.5", "--instruction.top-p=0.9", '--extra-body={"min_p": 0.01}', "--seed=5"]
    flags += ["--instruction.stop=\n20", "--instruction.stop=\n21", "--banned-starts=write", "--banned-starts=draw"]
    flags += [f"--topics={tmp_path / 'topics.txt'}", "--concurrency=2", "--model-preset=none", "--quiet"]
    flags += [f"--run-dir={tmp_path / 'by flag'}", f"--base-url={server}", "--num-instructions=3"]
    said = command_help.fastgen("generate", *flags)
    assert said.code == 0, said.err
    one, other = (RunFolder(tmp_path / name).header() for name in ("by keyword", "by flag"))
    assert (one.configuration, one.options) == (other.configuration, other.options)
    assert one.configuration["instruction.temperature"] == 0.5


@pytest.mark.parametrize("part", [field.name for field in fields(Options)])
def test_every_option_of_the_command_is_a_keyword_or_says_why_not(part: str, tmp_path: Path) -> None:
    """None of them is unknown. A wrong role ends the call before anything begins."""
    options = getattr(Options(), part)
    values = {field.name: getattr(options, field.name) for field in fields(options)}
    values = {name: "1" if value in (None, ()) else value for name, value in values.items()}
    given = {name: value for name, value in values.items() if name not in {*_ONLY_COMMAND, "sampling_given"}}
    with pytest.raises(InputError) as caught:
        fastgen.generate(tmp_path / "run", **{**given, "role": "?"})
    assert "no keyword" not in str(caught.value)
    assert "Unknown" not in str(caught.value)
    for name in {*_ONLY_COMMAND} & {*values}:
        with pytest.raises(InputError, match=f"{name}: belongs to the command line"):
            fastgen.generate(tmp_path / "run", progress=False, **dict[str, Any]({name: True}))


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ({"num_instruction": 3}, "generate() has no keyword 'num_instruction'; did you mean num_instructions?"),
        ({"base-url": "x"}, "generate() has no keyword 'base-url'; did you mean base_url?"),
        ({"colour": 3}, "generate() has no keyword 'colour'; 'fastgen generate --help' lists the options"),
        ({"num_instructions": 0}, "--num-instructions: ask for at least 1"),
        ({"num_instructions": "many"}, 'Invalid value for --num-instructions: unable to convert "many" into int.'),
        ({"dry_run": True}, "dry_run: belongs to the command line; use progress=, and Python's logging"),
        ({"api_key_env": "FASTGEN_NO_SUCH_KEY"}, "--api-key-env FASTGEN_NO_SUCH_KEY: that environment variable is not"),
        ({"instruction": {"temperatur": 1}}, "--instruction.temperatur"),
    ],
)
def test_a_wrong_keyword_is_an_error_of_one_line(keywords: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        fastgen.generate(tmp_path / "run", **keywords)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError):
        fastgen.stream(tmp_path / "run", **keywords)  # at once, before any row is asked for
    assert not (tmp_path / "run").exists()


def test_a_server_that_is_not_there_is_fastgens_error(tmp_path: Path) -> None:
    with pytest.raises(BackendUnavailable, match="start the server"):
        fastgen.generate(tmp_path / "run", base_url="http://127.0.0.1:9/v1", server_timeout=0.1, progress=False)


def test_a_resume_takes_what_is_not_given_from_the_run(server: str, tmp_path: Path) -> None:
    fastgen.generate(tmp_path / "run", base_url=server, num_instructions=4, seed=3, progress=False)
    run = fastgen.generate(tmp_path / "run", num_instructions=8, progress=False)
    assert (run.counts.complete, run.configuration["seed"]) == (8, 3)
    with pytest.raises(InputError, match="--seed 3 "):
        fastgen.generate(tmp_path / "run", num_instructions=12, seed=4, progress=False)


def test_a_run_that_ends_by_a_rule_says_which(server: str, tmp_path: Path) -> None:
    run = fastgen.generate(
        tmp_path / "run",
        base_url=server,
        num_instructions=MANY,
        stop_when_yield_below=900.0,
        yield_window=20,
        progress=False,
    )
    assert run.ended_by is not None
    assert "--stop-when-yield-below" in run.ended_by
    assert run.state == "resumable"


def test_a_configuration_file_is_a_keyword_and_other_keywords_win(server: str, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(f'base_url = ["{server}"]\nnum_instructions = 3\nseed = 4\n')
    run = fastgen.generate(tmp_path / "run", config=tmp_path / "run.toml", seed=5, progress=False)
    assert (run.counts.complete, run.configuration["seed"]) == (3, 5)


def test_an_error_of_the_callers_function_drains_the_run_and_is_raised(server: str, tmp_path: Path) -> None:
    def fail(_: Progress) -> None:
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        fastgen.generate(tmp_path / "run", base_url=server, num_instructions=MANY, progress=fail)
    assert fastgen.open_run(tmp_path / "run").state == "resumable"
    with pytest.raises(RuntimeError, match="mine"):
        asyncio.run(fastgen.agenerate(tmp_path / "run", progress=fail))
    assert fastgen.open_run(tmp_path / "run").state == "resumable"


# rows while they are made


def test_a_stream_gives_the_rows_of_the_run_in_its_order(server: str, tmp_path: Path) -> None:
    rows = list(fastgen.stream(tmp_path / "run", base_url=server, num_instructions=12))
    run = fastgen.open_run(tmp_path / "run")
    assert rows == list(run.rows())
    assert run.counts.complete == 12
    longer = list(fastgen.stream(str(tmp_path / "run"), num_instructions=20, format="messages"))
    assert longer == list(run.rows("messages"))
    assert longer[: len(rows)] == list(run.rows("messages"))[: len(rows)]


def test_leaving_a_stream_stops_the_run_which_can_be_resumed(server: str, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    with contextlib.closing(fastgen.stream(run.path, base_url=server, num_instructions=MANY)) as rows:
        first = [next(rows) for _ in range(5)]
        assert f"{run.state}" == "running"
        with pytest.raises(InputError, match="in use by process"):
            fastgen.generate(run.path, progress=False)
    assert run.state == "resumable"
    assert list(run.rows())[:5] == first
    assert "fastgen run" not in {thread.name for thread in threading.enumerate()}


def test_a_stream_that_is_never_read_begins_nothing(server: str, tmp_path: Path) -> None:
    fastgen.stream(tmp_path / "run", base_url=server, num_instructions=5).close()
    assert not (tmp_path / "run").exists()


def test_a_stream_ends_with_the_error_that_ended_the_run(tmp_path: Path) -> None:
    with pytest.raises(BackendUnavailable):
        next(fastgen.stream(tmp_path / "run", base_url="http://127.0.0.1:9/v1", server_timeout=0.1))


# where a loop is running


def test_all_of_it_works_where_an_event_loop_is_running(server: str, tmp_path: Path) -> None:
    loops: list[object] = []

    async def work() -> None:
        run = fastgen.generate(tmp_path / "sync", base_url=server, num_instructions=3, progress=False)
        assert run.counts.complete == 3
        run = await fastgen.agenerate(
            tmp_path / "async",
            base_url=server,
            num_instructions=6,
            progress=lambda _: loops.append(asyncio.get_running_loop()),
        )
        assert (run.counts.complete, run.state) == (6, "done")
        assert {*loops} == {asyncio.get_running_loop()}
        rows = [row async for row in fastgen.astream(run.path, num_instructions=9)]
        assert rows == list(run.rows())
        assert run.counts.complete == 9

    asyncio.run(work())


def test_cancelling_drains_and_leaving_an_async_stream_does(server: str, tmp_path: Path) -> None:
    async def work() -> None:
        begun = asyncio.Event()
        running = asyncio.create_task(
            fastgen.agenerate(tmp_path / "a", base_url=server, num_instructions=MANY, progress=lambda _: begun.set())
        )
        await begun.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert Run(tmp_path / "a").state == "resumable"
        async with contextlib.aclosing(fastgen.astream(tmp_path / "b", base_url=server, num_instructions=MANY)) as rows:
            async for _ in rows:
                break
        assert Run(tmp_path / "b").state == "resumable"

    asyncio.run(work())


# signals, and the end of the process

SCRIPT = """
import sys, fastgen
url, run_dir = sys.argv[1:]
def begun(progress):
    print("begun", flush=True)
"""
CALLS = {
    "generate": "fastgen.generate(run_dir, base_url=url, num_instructions=1_000_000, progress=begun)",
    "stream": "for row in fastgen.stream(run_dir, base_url=url, num_instructions=1_000_000): begun(row)",
    "agenerate": "import asyncio\n"
    "asyncio.run(fastgen.agenerate(run_dir, base_url=url, num_instructions=1_000_000, progress=begun))",
}


@pytest.mark.parametrize("call", CALLS)
def test_ctrl_c_drains_the_run_and_is_raised(server: str, tmp_path: Path, call: str) -> None:
    command = [sys.executable, "-c", SCRIPT + CALLS[call], server, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGINT
    assert said.splitlines()[-1].startswith("KeyboardInterrupt")
    run = fastgen.open_run(tmp_path / "run")
    assert run.state == "resumable"
    assert run.counts.kept > 0


def test_a_program_that_ends_in_the_middle_ends_the_run(server: str, tmp_path: Path) -> None:
    program = SCRIPT + "rows = fastgen.stream(run_dir, base_url=url, num_instructions=1_000_000)\nnext(rows)\n"
    command = [sys.executable, "-c", program, server, str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert fastgen.open_run(tmp_path / "run").state == "resumable"


# reading runs


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return fastgen.open_run(make_run(tmp_path / "run", numbered(10)))


def test_rows_are_those_that_an_export_writes(run: Run, tmp_path: Path) -> None:
    for form in ("raw", "instances", "messages"):
        run.export(tmp_path / f"{form}.jsonl", form)
        lines = (tmp_path / f"{form}.jsonl").read_bytes().splitlines()
        assert [orjson.loads(line) for line in lines] == list(run.rows(form))
    assert len(list(run.rows(max_instructions=3, include_seeds=True))) == 3
    assert next(run.rejected()) == {
        "instruction": "Too short.",
        "rule": "too_short",
        "neighbour": None,
        "request_id": 0,
    }


def test_an_export_takes_the_flags_of_the_command(run: Run, tmp_path: Path) -> None:
    done = run.export(tmp_path / "out", "csv", split="train=0.5,test=0.5", card=True, license="mit")
    assert sum(done.rows.values()) == 20
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"train.csv", "test.csv", "README.md"}
    with pytest.raises(InputError, match="--overwrite"):
        run.export(tmp_path / "out", "csv", split="train=0.5,test=0.5")
    with pytest.raises(InputError, match=r"export\(\) has no keyword 'overwite'; did you mean overwrite\?"):
        run.export(tmp_path / "out", overwite=True)


def test_a_wrong_choice_of_rows_is_refused_at_once(run: Run) -> None:
    for call, said in (
        (lambda: run.rows("jsonl"), "format: 'jsonl' is not one of raw, instances"),  # type: ignore[arg-type]
        (lambda: run.rows(max_instruction=3), "did you mean max_instructions?"),
        (lambda: run.rows("messages", include_empty=True), "--include-empty: "),
        (lambda: run.rows(min_judge_score=3), "has no judgements"),
        (lambda: fastgen.open_run(run.path / "nothing"), "there is no run here"),
        (lambda: fastgen.list_runs(run.path / "nothing"), "is no folder"),
    ):
        with pytest.raises(InputError) as caught:
            call()
        assert said in str(caught.value)


@pytest.mark.parametrize("name", ["self-instruct", *OTHER_METHODS])
def test_every_format_becomes_a_data_frame_and_a_data_set(tmp_path: Path, name: str) -> None:
    pytest.importorskip("datasets")
    path = tmp_path / "run"
    run = Run(make_run(path, numbered(4)) if name == "self-instruct" else make_method_run(path, name))
    for form in FORMATS:
        rows, frame, found = list(run.rows(form)), run.to_pandas(form), run.to_dataset(form)
        assert len(frame) == found.num_rows == len(rows)
        assert list(frame.columns) == found.column_names
        if form not in ("raw", "rejected"):  # structs, in which a data set has every field
            assert found.to_list() == rows


def test_an_empty_run_has_frames_and_data_sets_with_their_columns(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    run = Run(make_run(tmp_path / "run", [Task("This one is still on its way.", None)]))
    assert run.to_dataset("parquet").column_names == list(run.to_pandas().columns)
    assert run.to_dataset().num_rows == 0
    assert "instruction" in run.to_pandas().columns


@pytest.mark.parametrize(("call", "library"), [("to_pandas", "pandas"), ("to_dataset", "datasets")])
def test_a_missing_library_is_named_with_its_extra(
    run: Run, call: str, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(InputError, match=rf"{call}: needs {library}.*{re.escape(how_to_install('data'))}"):
        getattr(run, call)()


@pytest.mark.parametrize("name", ["self-instruct", *OTHER_METHODS])
def test_the_counts_are_those_of_the_rows(tmp_path: Path, name: str) -> None:
    path = tmp_path / "run"
    run = Run(make_run(path, numbered(4)) if name == "self-instruct" else make_method_run(path, name))
    assert run.counts.instances == len(list(run.rows()))
    assert run.counts.complete == len({row["id"] for row in run.rows()})
    (path / "ledger.json").unlink()  # of a run that was copied without it
    assert run.counts.instances == len(list(run.rows()))


def test_two_runs_are_compared(run: Run, tmp_path: Path) -> None:
    other = make_run(tmp_path / "other", numbered(4), model="another-model")
    found = run.compare(other)
    assert found == run.compare(Run(other))
    assert [side["complete"] for side in found["runs"]] == [10, 4]
    assert found["settings"] == {"model": ["some-model", "another-model"]}


def test_runs_are_listed_and_printed(run: Run) -> None:
    assert [one.path for one in fastgen.list_runs(run.path.parent)] == [run.path]
    assert repr(run) == f"<Run {run.path}: 10 of 10, done>"


# the package


def test_importing_fastgen_loads_nothing_and_generate_stays_the_function() -> None:
    program = (
        "import sys, fastgen\n"
        "loaded = {'asyncio', 'aiohttp', 'numpy', 'cyclopts', 'orjson', 'rich'} & {*sys.modules}\n"
        "assert not loaded, loaded\n"
        "assert {*fastgen.__all__} <= {*dir(fastgen)}\n"
        "import fastgen.generate.run\n"
        "from fastgen.generate import options\n"
        "assert fastgen.generate is sys.modules['fastgen.api'].generate if 'fastgen.api' in sys.modules else True\n"
        "for name in fastgen.__all__:\n"
        "    assert getattr(fastgen, name) is not None\n"
        "from fastgen import *\n"
        "assert generate is fastgen.api.generate\n"
        "assert fastgen.errors.InputError is options.InputError\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_examples_of_the_page_run_one_after_the_other(server: str, tmp_path: Path) -> None:
    page = (Path(__file__).parent.parent / "docs" / "python.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 9
    program = "\n".join(blocks).replace("http://127.0.0.1:8000/v1", server)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("done 30 test-model-base\n")
    assert "generate() has no keyword 'num_instruction'; did you mean num_instructions?\n" in done.stdout
    assert "runs/demo done\n" in done.stdout
    assert (tmp_path / "demo.json").is_file()
