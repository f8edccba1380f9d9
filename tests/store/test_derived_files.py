"""What is derived from the log may be wrong, unreadable or gone: a start, ``status`` and ``export`` do not need it.

Every file goes through a list of malformed contents, those with a valid checksum included, by way of the command line.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from fastgen.cli import app as cli
from fastgen.generate.checkpoint import Checkpointer
from fastgen.generate.options import JobOptions, Options, ServerOptions
from fastgen.generate.run import Outcome, Place, generate
from fastgen.generate.runtime import Stopper
from fastgen.simulator.server import FaultServer
from fastgen.store.log import seal
from fastgen.store.run_folder import RunFolder
from fastgen.telemetry.progress import QuietReporter

HUGE = 1 << 62


def carry_out(run: Path, count: int) -> Outcome:
    """Generate in ``run`` until there are ``count`` instructions."""
    is_new = not run.exists()

    async def main() -> Outcome:
        async with FaultServer() as server:
            url = (server.base_url,) if is_new else ()
            options = Options(job=JobOptions(num_instructions=count), server=ServerOptions(base_url=url))
            return await generate(Place(run, run), options, QuietReporter(), Stopper(QuietReporter()))

    return asyncio.run(main())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with a ledger, a checkpoint, figures over time and a judge's summary; copy it before use."""
    run = tmp_path_factory.mktemp("derived") / "run"
    defaults = Checkpointer.__init__.__kwdefaults__ or {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(defaults, "least_growth", 1)
        carry_out(run, 12)
    assert (run / "checkpoint.npz").exists()
    (run / "metrics.jsonl").write_bytes(b"")
    (run / "judgements" / "j").mkdir(parents=True)
    return run


def counts(values: dict[str, Any]) -> dict[str, Any]:
    """Of a ledger; the times in a log are rounded."""
    return {name: value for name, value in values.items() if not name.endswith("_s")}


Change = Callable[[dict[str, Any]], object]


def sealed(path: Path, change: Change) -> bytes:
    """The file with its one line changed and sealed again, so that the checksum holds."""
    values = orjson.loads(path.read_bytes())
    del values["crc"]
    change(values)
    return seal(values, 0)[0]


def rearchived(path: Path, change: Change) -> bytes:
    """The archive with its facts and arrays (by name, ``facts`` among them) changed and written again."""
    with np.load(path) as archive:
        values: dict[str, Any] = {name: archive[name] for name in archive.files}
    values["facts"] = orjson.loads(values.pop("facts.json"))
    change(values)
    facts, again = orjson.dumps(values.pop("facts")), path.with_name("again.npz")
    np.savez(again, allow_pickle=True, **values)
    with zipfile.ZipFile(again, "a") as archive:
        archive.writestr("facts.json", facts)
    content = again.read_bytes()
    again.unlink()
    return content


PLAIN: dict[str, bytes | None] = {
    "gone": None,
    "empty": b"",
    "garbage": random.Random(5).randbytes(300),
    "zeros": bytes(4096),
    "a list": b"[1, 2]\n",
    "null": b"null\n",
    "a number": b"7\n",
    "text": b'"x"\n',
    "an object": b"{}\n",
    "deep": b"[" * 100_000,
    "no end": b'{"run": "',
}
LEDGER: dict[str, Change] = {
    "a field is missing": lambda v: v["counts"].pop("kept"),
    "a newer field": lambda v: v["counts"].update(of_tomorrow={"x": 1}),
    "a newer section": lambda v: v.update(of_tomorrow=[1]),
    "text for a count": lambda v: v["counts"].update(kept="many"),
    "null for a count": lambda v: v["counts"].update(complete=None),
    "a fraction for a count": lambda v: v["counts"].update(kept=1.5),
    "a count below zero": lambda v: v["counts"].update(kept=-5),
    "a list for counts by name": lambda v: v["counts"].update(rejected=[1]),
    "text among counts by name": lambda v: v["counts"].update(rejected={"similar": "x"}),
    "more tokens than can be": lambda v: v["counts"].update(completion_tokens={"instance": HUGE}),
    "a time that is none": lambda v: v["counts"].update(started_s=[]),
    "no counts": lambda v: v.update(counts=7),
    "no position": lambda v: v.pop("position"),
    "half a position": lambda v: v.update(position=[0, 1]),
    "a position of texts": lambda v: v.update(position=["0", "1", "2"]),
    "a position below zero": lambda v: v.update(position=[0, -1, 2]),
    "synced is text": lambda v: v.update(synced="all"),
    "no word of what was synced": lambda v: v.pop("synced", None),
    "server figures are a list": lambda v: v.update(server=[1]),
    "server figures are text": lambda v: v.update(server={"prefix_cache_hit_rate": "much"}),
    "server figures are nested": lambda v: v.update(server={"prefix_cache_hit_rate": {"a": 1}}),
    "no server figures": lambda v: v.pop("server"),
}
CHECKPOINT: dict[str, Change] = {
    "facts are a list": lambda v: v.update(facts=[1]),
    "facts are text": lambda v: v.update(facts="x"),
    "no plan": lambda v: v["facts"].pop("plan"),
    "the plan is a list": lambda v: v["facts"].update(plan=[1]),
    "the plan lacks a field": lambda v: v["facts"]["plan"].pop("requests"),
    "the plan has a newer field": lambda v: v["facts"]["plan"].update(of_tomorrow=1),
    "the plan counts in text": lambda v: v["facts"]["plan"].update(complete="x"),
    "the plan's failures are flat": lambda v: v["facts"]["plan"].update(failures=[1]),
    "the plan's mean is short": lambda v: v["facts"]["plan"].update(complete_share=[1]),
    "the ledger lacks a field": lambda v: v["facts"]["ledger"].pop("kept"),
    "the ledger counts in text": lambda v: v["facts"]["ledger"].update(kept="x"),
    "a position of texts": lambda v: v["facts"].update(position=["a", "b", "c"]),
    "no digests": lambda v: v["facts"].update(log=7),
    "the index is text": lambda v: v["facts"].update(index="x"),
    "the index is a list": lambda v: v["facts"].update(index=[1]),
    "an array is missing": lambda v: v.pop("shown"),
    "a newer array": lambda v: (v.update(of_tomorrow=np.zeros(3)), v["facts"]["arrays"].append("of_tomorrow")),
    "the arrays are not listed": lambda v: v["facts"].pop("arrays"),
    "the list of arrays is text": lambda v: v["facts"].update(arrays="x"),
    "an array is short": lambda v: v.update({"pool/ends": v["pool/ends"][:-1]}),
    "an array has another dtype": lambda v: v.update({"pool/ends": v["pool/ends"].astype(np.float64)}),
    "an array has two dimensions": lambda v: v.update(shown=np.zeros((4, 4), np.uint8)),
    "an array holds objects": lambda v: v.update(shown=np.array([{}, None], object)),
    "an index array is missing": lambda v: v.pop("index/heads"),
    "an index array is of bytes": lambda v: v.update({"index/slab": v["index/slab"].view(np.uint8)}),
    "an index array is of zeros": lambda v: v.update({"index/place": v["index/place"] * 0}),
}
LINES: dict[str, bytes] = {
    "numbers for texts": orjson.dumps({"time_s": "now", "limit": 7, "window_s": []}),
    "texts for numbers": orjson.dumps({"time_s": 1.0, "limit": "server", "window_s": "long"}),
    "nulls": orjson.dumps({"time_s": None, "limit": None, "window_s": None}),
    "huge": b'{"time_s": 1e300, "limit": "server", "window_s": 1e308, "kept_per_server_s": 1e308}',
    "a list for the limit": orjson.dumps({"time_s": 1.0, "limit": [1], "window_s": 1.0}),
    "null figures": b'{"time_s": 1.0, "kept_per_1000_tokens": null, "kept_per_server_s": "x", "limit_reason": 7}',
    "servers are numbers": b'{"time_s": 1.0, "servers": [1, 2], "stages": {"a": 1}}',
}
SUMMARY: dict[str, bytes] = {
    "no figures": b'{"name": "j", "judged": 3}',
    "a mean of text": b'{"name": "j", "judged": 3, "mean_score": "x", "questions": {"all_right": {"share": 0.5}}}',
    "questions are a list": b'{"name": "j", "judged": 3, "mean_score": 1.0, "questions": []}',
}

VARIANTS = [
    *((name, variant) for name in ("ledger.json", "checkpoint.npz", "metrics.jsonl") for variant in PLAIN),
    *((name, "a folder") for name in ("ledger.json", "checkpoint.npz", "metrics.jsonl")),
    *(("ledger.json", variant) for variant in LEDGER),
    *(("checkpoint.npz", variant) for variant in CHECKPOINT),
    *(("metrics.jsonl", variant) for variant in LINES),
    *(("judgements/j/summary.json", variant) for variant in (*PLAIN, *SUMMARY)),
]


def spoil(path: Path, variant: str) -> None:
    changes = {"ledger.json": LEDGER, "checkpoint.npz": CHECKPOINT}.get(path.name, {})
    content = {**PLAIN, **LINES, **SUMMARY}.get(variant)
    if variant in changes:
        content = (sealed if path.suffix == ".json" else rearchived)(path, changes[variant])
    path.unlink(missing_ok=True)
    if variant == "a folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_a_derived_file_of_any_content_stops_neither_status_nor_export_nor_a_start(
    name: str, variant: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    before, rows = (run / "log" / "000000.jsonl").read_bytes(), tmp_path / "rows.jsonl"
    expected = counts(RunFolder(run).ledger().as_dict())
    spoil(run / name, variant)
    assert cli.run(["status", "--run-dir", str(run)]) == 0
    assert "12 of 12 instructions complete" in capsys.readouterr().out
    assert cli.run(["status", "--run-dir", str(run), "--json"]) == 0
    figures = orjson.loads(capsys.readouterr().out)
    assert {field: figures[field] for field in expected} == expected
    assert cli.run(["export", "--run-dir", str(run), "--output", str(rows)]) == 0
    assert len(rows.read_bytes().splitlines()) == 12
    outcome = carry_out(run, 12)
    assert (outcome.complete, counts(outcome.ledger.as_dict())) == (12, expected)
    assert (run / "log" / "000000.jsonl").read_bytes() == before


def test_counts_that_cannot_be_saved_are_one_warning_and_the_run_ends_well(
    finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / "ledger.json").unlink()
    (run / "ledger.json").mkdir()
    options = orjson.loads((run / "run.json").read_bytes())["options"]

    async def main() -> Outcome:
        async with FaultServer() as server:
            asked = Options(job=JobOptions(num_instructions=20), server=ServerOptions(base_url=(server.base_url,)))
            return await generate(Place(run, run), asked, QuietReporter(), Stopper(QuietReporter()))

    assert options["num_instructions"] == 12
    assert asyncio.run(main()).complete == 20
    told = [r.getMessage() for r in caplog.records if "ledger.json: cannot be saved" in r.getMessage()]
    assert len(told) == 1
    assert RunFolder(run).ledger().complete == 20


RUN_JSON: dict[str, Change] = {
    "the id is a number": lambda v: v.update(run=7),
    "the version is a list": lambda v: v.update(fastgen=[1]),
    "the meaning is a list": lambda v: v.update(meaning=[1]),
    "the meaning is text": lambda v: v.update(meaning="x"),
    "the options are null": lambda v: v.update(options=None),
    "the meaning lacks everything": lambda v: v.update(meaning={}),
    "the options lack everything": lambda v: v.update(options={}),
    "a rule is text": lambda v: v["meaning"].update(min_words="x"),
}


@pytest.mark.parametrize("variant", RUN_JSON)
def test_a_run_header_of_another_form_with_a_valid_checksum_is_refused_in_one_line(
    variant: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    values = orjson.loads((run / "run.json").read_bytes())
    RUN_JSON[variant](values)
    content = (values["run"], values["fastgen"], values["meaning"], values["options"])
    values["crc"] = zlib.crc32(orjson.dumps(content, option=orjson.OPT_SORT_KEYS))
    (run / "run.json").write_bytes(orjson.dumps(values))
    for command in (["status"], ["export", "--output", str(tmp_path / "rows.jsonl")]):
        code = cli.run([*command, "--run-dir", str(run)])
        said = capsys.readouterr().err
        assert code in {0, 2}
        if code == 2:
            assert said.count("\n") == 1
            assert str(run / "run.json") in said or "--min-words" in said
