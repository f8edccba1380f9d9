"""Uploading to the hub: the real library against a small server of ours."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from fastgen.errors import InputError, how_to_install
from fastgen.export import export as export_module
from fastgen.export import hub
from tests.export_help import call, make_run, numbered

pytest.importorskip("huggingface_hub")
TOKEN = "hf_aSecretToken"


@dataclass
class FakeHub:
    """What the hub was asked, and what it refuses: path to status."""

    endpoint: str = ""
    refused: dict[str, int] = field(default_factory=dict)
    asked: list[tuple[str, bytes, str]] = field(default_factory=list)

    def files(self) -> dict[str, str]:
        """The texts of the one commit."""
        (body,) = [body for path, body, _ in self.asked if "/commit/" in path]
        lines = [json.loads(line) for line in body.splitlines()]
        values = [line["value"] for line in lines if line["key"] == "file"]
        return {value["path"]: base64.b64decode(value["content"]).decode() for value in values}

    def answer(self, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        for part, status in self.refused.items():
            if part in path:
                return status, {"error": f"no\nsecond line with {TOKEN}"}
        if "whoami" in path:
            return 200, {"name": "me", "type": "user", "auth": {}}
        if "/repos/create" in path:
            return 200, {"url": f"{self.endpoint}/datasets/me/data"}
        if "/preupload/" in path:
            files = json.loads(body)["files"]
            return 200, {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
        if "/commit/" in path:
            return 200, {"commitUrl": f"{self.endpoint}/datasets/me/data/commit/1", "commitOid": "1" * 40}
        return (200 if "validate" in path else 404), {"errors": [], "warnings": []}


@contextmanager
def serving(fake: FakeHub) -> Iterator[None]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            fake.asked.append((self.path, body, self.headers.get("Authorization", "")))
            status, content = fake.answer(self.path, body)
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST  # noqa: N815 - the base class names it

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        fake.endpoint = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    fake = FakeHub()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with serving(fake):
        monkeypatch.setattr(export_module, "connect", lambda repo: hub.connect(repo, fake.endpoint))
        yield fake


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", numbered(5))


def push(run: Path, output: Path, *flags: str) -> tuple[int, list[str]]:
    """The command without its own line count; the library may show bars."""
    import contextlib
    import io

    from fastgen.cli import app as cli

    err = io.StringIO()
    with contextlib.redirect_stderr(err):
        arguments = ["export", "--run-dir", run, "--output", output, "--format", "messages", *flags]
        code = cli.run([str(argument) for argument in arguments])
    said = [line for line in err.getvalue().splitlines() if line.startswith(("fastgen: ", "uploaded ", "10 rows "))]
    assert TOKEN not in err.getvalue()
    return code, said


def test_data_and_card_arrive_in_one_commit_in_a_private_data_set_with_the_users_token(
    fake: FakeHub, run: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "private.txt").write_text("stays here")
    code, said = push(run, output, "--push-to-hub", "me/data")
    assert (code, said[-1]) == (0, f"uploaded to {fake.endpoint}/datasets/me/data")
    assert fake.files() == {name: (output / name).read_text() for name in ("train.jsonl", "README.md")}
    (created,) = [json.loads(body) for path, body, _ in fake.asked if "/repos/create" in path]
    assert created["name"] == "data"
    assert created.get("visibility", created.get("private")) in {"private", True}
    assert {authorisation for _, _, authorisation in fake.asked} == {f"Bearer {TOKEN}"}


def test_a_public_data_set_is_made_on_request_only(fake: FakeHub, run: Path, tmp_path: Path) -> None:
    assert push(run, tmp_path / "out", "--push-to-hub", "me/data", "--no-private")[0] == 0
    (created,) = [json.loads(body) for path, body, _ in fake.asked if "/repos/create" in path]
    assert created.get("visibility", created.get("private")) in {"public", False}


@pytest.mark.parametrize(
    ("part", "status", "named"),
    [
        ("whoami", 401, "the hub refuses the token (401); set HF_TOKEN or run 'hf auth login'"),
        ("/repos/create", 403, "the token may not write there (403)"),
        ("/preupload/", 404, "the hub has no such user or data set (404)"),
        ("/commit/", 400, "the hub answered 400"),
    ],
)
def test_a_refusal_is_one_line_without_the_token_and_the_folder_is_whole_from_then_on(
    fake: FakeHub, run: Path, tmp_path: Path, part: str, status: int, named: str
) -> None:
    fake.refused[part] = status
    code, said = push(run, tmp_path / "out", "--push-to-hub", "me/data")
    assert (code, len(said)) == (2, 1)
    assert said[0].startswith(f"fastgen: --push-to-hub me/data: {named}")
    assert (tmp_path / "out" / "README.md").exists() == (part != "whoami"), "a bad token is reported before any work"
    assert ("only the upload is left" in said[0]) == (part != "whoami")


@pytest.mark.parametrize("repo", ["a b", "a//b", "a/b/c", "../x", ""])
def test_an_invalid_name_is_refused_before_any_request(fake: FakeHub, run: Path, tmp_path: Path, repo: str) -> None:
    code, said = push(run, tmp_path / "out", "--push-to-hub", repo)
    assert (code, "is no data set's name" in said[0]) == (2, True)
    assert fake.asked == []
    assert not (tmp_path / "out").exists()


def test_an_unreachable_hub_is_one_line(fake: FakeHub) -> None:
    with pytest.raises(
        InputError, match=r"^--push-to-hub me/data: the hub cannot be reached \(\w+\); check the network$"
    ):
        hub.connect("me/data", "http://127.0.0.1:9")


def test_a_missing_token_says_how_to_get_one(fake: FakeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(InputError, match="there is no token; set HF_TOKEN or run 'hf auth login'"):
        hub.connect("me/data", fake.endpoint)


def test_without_the_library_the_extra_is_named(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    said = call(run, tmp_path / "out", "--push-to-hub", "me/data")
    assert said.code == 2
    assert said.line.endswith(how_to_install("hub"))
