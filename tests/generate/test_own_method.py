"""A whole run of a method in a user's file: commands and figures know its steps by their names."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from fastgen.methods.base import Commit, Created
from fastgen.report.live_view import Follower
from fastgen.simulator.chat import Schemas, ServedModel
from fastgen.simulator.server import FaultServer, in_a_thread
from fastgen.store.reader import finished_instructions, open_run
from fastgen.store.run_folder import RunFolder
from fastgen.telemetry.figures import Sample
from fastgen.telemetry.instruments import Instruments
from fastgen.telemetry.monitor import MetricsHub
from fastgen.telemetry.series import read_metrics
from tests.command_help import Said, fastgen
from tests.dashboard_help import read_all
from tests.methods import declared
from tests.telemetry.test_metrics_of_a_run import scrape

STEPS = ["instruction", "grade", "answer", "followup", "reply"]
ASKED = {"Write tasks": "instruction", "Grade:": "grade", "What next?": "followup"}
DOCUMENTS = 60


def write(prompt: str, choice: int) -> str:
    step = next((step for words, step in ASKED.items() if words in prompt), "answer")
    return declared.completion_of(step, random.Random(zlib.crc32(f"{prompt}{choice}".encode())))


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with in_a_thread(FaultServer(write=write)) as running:
        yield running.base_url


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("documents") / "documents.jsonl"
    rows = ({"text": f"Document number {number} is about this and that."} for number in range(DOCUMENTS))
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return path


def generate(run: Path, server: str, documents: Path, count: int, *more: str) -> Said:
    flags = ("--base-url", server, "--num-instructions", str(count), "--concurrency", "4", "--documents", documents)
    said = fastgen("generate", "--run-dir", run, "--method", declared.__file__, *flags, *more)
    assert said.code == 0, said.err
    return said


def status(run: Path) -> dict[str, object]:
    said = fastgen("status", "--run-dir", run, "--json")
    assert said.code == 0, said.err
    found: dict[str, object] = orjson.loads(said.out)
    return found


def commits(run: Path) -> list[Commit]:
    return list(RunFolder(run).whole_commits())


@pytest.fixture(scope="module", params=["completions", "chat"])
def run(request: pytest.FixtureRequest, server: str, documents: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was ended, and resumed until the documents were used up."""
    folder = tmp_path_factory.mktemp("own") / "run"
    generate(folder, server, documents, 5, "--api", request.param, "--samples-per-prompt", "2")
    assert status(folder)["complete"] == 5
    generate(folder, server, documents, 100_000, "--api", request.param, "--samples-per-prompt", "2")
    return folder


def test_every_document_is_asked_about_once_and_all_is_finished(run: Path) -> None:
    asked = {one.request: one.demonstrations for one in commits(run) if one.step == "instruction"}
    assert sorted(asked.values()) == [(number,) for number in range(DOCUMENTS)]
    figures = status(run)
    assert figures["pending"] == 0
    assert isinstance(figures["complete"], int)
    assert figures["complete"] > 5


def test_status_and_metrics_have_the_steps_in_their_order(run: Path) -> None:
    figures, samples = status(run), list(read_metrics(run))
    completions = figures["completions"]
    assert isinstance(completions, dict)
    assert [*completions] == STEPS
    assert {step for sample in samples for step in sample.stages} == {*STEPS}
    said = fastgen("status", "--run-dir", run).out
    assert "completions        " + ", ".join(f"{step} {count:,}" for step, count in completions.items()) in said
    assert all(f"\n    {step}" in said for step in STEPS)


def test_the_live_view_counts_what_is_finished_as_status_does(run: Path) -> None:
    follower = read_all(Follower(run))
    figures = status(run)
    assert follower.ledger.complete == figures["complete"]
    assert follower.figures is not None
    rows = [one for one in finished_instructions(commits(run), open_run(run)) if one.instances]
    assert follower.figures.instruction_words.total == len(rows) == figures["complete"]


def test_a_refilter_by_the_same_rules_gives_the_same_log_and_by_stricter_ones_less(run: Path, tmp_path: Path) -> None:
    assert fastgen("refilter", "--run-dir", run, "--output", tmp_path / "same").code == 0
    assert commits(tmp_path / "same") == commits(run)
    said = fastgen("refilter", "--run-dir", run, "--output", tmp_path / "strict", "--threshold", "0.3")
    assert said.code == 0, said.err
    strict = commits(tmp_path / "strict")
    kept = [len(one.outcome.kept) for one in strict if isinstance(one.outcome, Created)]
    assert 0 < sum(kept) < sum(len(one.outcome.kept) for one in commits(run) if isinstance(one.outcome, Created))
    assert {one.subject for one in strict if one.subject is not None} <= {*range(sum(kept))}
    finished = list(finished_instructions(strict, open_run(tmp_path / "strict")))
    assert len(finished) == sum(kept), "each kept one takes all that was made of it along"


def test_a_changed_file_does_not_resume_but_refilters_a_run(server: str, documents: Path, tmp_path: Path) -> None:
    method, folder = tmp_path / "mine.py", tmp_path / "run"
    source = Path(declared.__file__).read_text()
    method.write_text(source)
    flags = ("--base-url", server, "--documents", documents, "--method", method)
    assert fastgen("generate", "--run-dir", folder, "--num-instructions", "3", *flags).code == 0
    method.write_text(source.replace("Write tasks for", "Write good tasks for"))
    again = fastgen("generate", "--run-dir", folder, "--num-instructions", "9", *flags)
    assert again.code == 2
    assert "method_file" in again.last or "method-file" in again.last or "--method" in again.last
    refiltered = fastgen("refilter", "--run-dir", folder, "--output", tmp_path / "other")
    assert refiltered.code == 0
    assert "was changed since the run was made" in refiltered.err
    assert fastgen("status", "--run-dir", folder).code == 0, "reading needs no method"


def test_prometheus_names_any_step() -> None:
    hub, instruments = MetricsHub(), Instruments()
    for step in STEPS:
        instruments.observe_latency(step, 0.004)
    hub.reading = Sample(counters=instruments)
    assert [*hub.mean_latencies_s()] == STEPS
    seen = scrape(hub)
    assert all(seen["fastgen_request_seconds_count", frozenset({step})] == 1 for step in STEPS)


# -- structured output -------------------------------------------------------------------------------------------------

WITH_FORMS = """
from fastgen.methods import base
from fastgen.methods.structured import Form, read_records
from fastgen.text import answer_span
from fastgen.types import Message, Sampling

def spans(text, name):
    return [record[name] for record in read_records(text, answer_span(text) or (0, 0)) if name in record]

def build(setup):
    tasks = Form("tasks", ("task",), most=4)
    answers = Form("answers", ("answer", "reason"), most=2)
    return base.Method(
        name="forms",
        creation=base.Creation(
            sampling=Sampling(1.0, 1.0, 500),
            ask=lambda draw: base.Ask((Message("user", f"Write tasks, number {draw.number}."),)),
            read=lambda done, _: [base.Item(at, done.text[slice(*at)]) for at in spans(done.text, "text")],
            form=tasks,
        ),
        steps=(
            base.Step(
                name="answer",
                sampling=Sampling(1.0, 1.0, 500),
                ask=lambda subject: base.Ask((Message("user", subject.text),)),
                read=lambda done, _: base.Answered(tuple(((0, 0), at) for at in spans(done.text, "answer"))),
                form=FORM,
            ),
        ),
        check=setup.check,
    )
"""


def with_forms(tmp_path: Path, form: str) -> list[str | Path]:
    path = tmp_path / "forms.py"
    path.write_text(WITH_FORMS.replace("FORM", form))
    return ["--method", path, "--structured", "on", "--num-instructions", "12"]


@pytest.mark.parametrize("form", ["answers", "lambda subject: answers"])
def test_a_method_of_a_user_gets_the_fields_of_its_forms(form: str, tmp_path: Path) -> None:
    with in_a_thread(FaultServer(kind=ServedModel(schemas=Schemas.HONOUR))) as server:
        flags = with_forms(tmp_path, form)
        said = fastgen("generate", "--run-dir", tmp_path / "run", "--base-url", server.base_url, *flags)
    assert said.code == 0, said.err
    folder = tmp_path / "run"
    rows = list(finished_instructions(commits(folder), open_run(folder)))
    assert len(rows) == 12
    assert all(one.instances and '"' not in one.instances[0].output for one in rows)


@pytest.mark.parametrize(
    ("form", "wrong"), [("3", "declares int 3 where a Form"), ("lambda _: 3", "answer: TypeError")]
)
def test_a_form_that_is_none_is_a_mistake_in_the_file(form: str, wrong: str, tmp_path: Path) -> None:
    with in_a_thread(FaultServer(kind=ServedModel(schemas=Schemas.HONOUR))) as server:
        flags = with_forms(tmp_path, form)
        said = fastgen("generate", "--run-dir", tmp_path / "run", "--base-url", server.base_url, *flags)
    assert said.code == 2
    assert wrong in said.last
