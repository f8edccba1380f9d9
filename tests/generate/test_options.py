"""Options: one place for flags, files and run folders, in the right order, with errors that name the flag."""

from __future__ import annotations

import dataclasses
from importlib.resources import files
from pathlib import Path
from typing import Any

import orjson
import pytest

from fastgen.cli import app as cli
from fastgen.cli import app as option_sources
from fastgen.errors import InputError
from fastgen.generate import session
from fastgen.generate.options import (
    Options,
    ServerOptions,
    check_same_configuration,
    preset_values,
    refuse_credentials,
    run_configuration,
    saved_values,
    with_paper_server,
)
from fastgen.generate.serving import _backends
from fastgen.methods.self_instruct.rules import (
    BANNED_WORDS,
    CHAT_SAMPLING_PRESETS,
    PRESETS,
    RULES_OF_EARLIER_RUNS,
    SAMPLING_PRESETS,
)
from fastgen.methods.self_instruct.seeds import default_seed_path, load_seed_tasks, seed_fingerprint
from fastgen.servers.choose import Gpu, gpu_server_specs
from fastgen.servers.protocol import encode_request
from fastgen.similarity.bands import Bands
from fastgen.similarity.novelty import NoveltyFilter
from fastgen.similarity.options import MAX_BANDS, MAX_ROWS, SimilarityOptions
from fastgen.store.reader import open_run
from fastgen.store.run_folder import RunFolder, Store
from fastgen.types import Message, Request


def parse(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, Options | None]:
    """The exit code and the options that `generate` would run with."""
    seen: list[Options] = []

    def catch(_place: object, options: Options) -> int:
        seen.append(options)
        return 0

    monkeypatch.setattr(session, "run", catch)
    code = cli.run(["generate", *arguments])
    return code, seen[0] if seen else None


def options_for(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Options:
    code, options = parse(monkeypatch, *arguments)
    assert code == 0
    assert options is not None
    return options


def test_without_flags_the_default_preset_is_what_the_dataclasses_say(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert options_for(monkeypatch, "--run-dir", str(tmp_path)) == Options()


def test_the_paper_preset_changes_rules_sampling_tokenizer_and_index(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    options = options_for(monkeypatch, "--run-dir", str(tmp_path), "--preset", "paper")
    assert options.rules == PRESETS["paper"]
    assert options.sampling.by_step() == dict(SAMPLING_PRESETS["paper"])
    assert (options.similarity.tokenizer, options.similarity.index) == ("rouge", "exact")


def test_chat_has_its_own_sampling(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    options = options_for(monkeypatch, "--run-dir", str(tmp_path), "--api", "chat")
    assert options.sampling.by_step() == dict(CHAT_SAMPLING_PRESETS["default"])


def test_flags_win_over_the_file_and_the_file_over_the_preset(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text(
        'preset = "paper"\nmin-words = 6\nmax_words = 90\nbase_url = ["http://a/v1", "http://b/v1"]\n'
        "[instruction]\ntemperature = 0.3\ntop_p = 0.8\n"
    )
    flags = ["--run-dir", str(tmp_path / "r"), "--config", str(file), "--max-words", "80", "--instruction.top-p", "0.6"]
    options = options_for(monkeypatch, *flags)
    assert (options.rules.min_words, options.rules.max_words) == (6, 80)
    assert options.rules.capitalise
    assert options.server.base_url == ("http://a/v1", "http://b/v1")
    paper = SAMPLING_PRESETS["paper"]["instruction"]
    assert options.sampling.instruction == dataclasses.replace(paper, temperature=0.3, top_p=0.6)


def test_every_saved_option_reads_back_as_the_same_option(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    flags = ["--preset", "paper", "--base-url", "http://a", "--instruction.stop", "x", "--seed", "5", "--quiet"]
    options = options_for(monkeypatch, "--run-dir", str(tmp_path), *flags)
    monkeypatch.setattr(option_sources, "saved_options", lambda _run_dir: saved_values(options))
    again = options_for(monkeypatch, "--run-dir", str(tmp_path), "--quiet")
    assert again == options


def test_saved_options_hold_no_credentials() -> None:
    options = Options()
    server = dataclasses.replace(
        options.server,
        base_url=("http://me:hunter2@host/v1",),
        server_args="--max-num-seqs 8 --hf-token=hunter2",
    )
    values = saved_values(dataclasses.replace(options, server=server))
    assert "hunter2" not in str(values)
    assert "--max-num-seqs 8" in str(values)


BAD: dict[str, list[str]] = {
    "--threshold": ["--threshold", "1.5"],
    "--num-instructions": ["--num-instructions", "-3"],
    "--min-words": ["--min-words", "200"],
    "--concurrency": ["--concurrency", "0"],
    "--preset": ["--preset", "papr"],
    "--thresold": ["--thresold", "0.5"],
    "--seed": ["--seed", "abc"],
    "--config": ["--config", "/nowhere/x.toml"],
    "--num-machine-instructions": ["--num-machine-instructions", "8"],
    "--instruction.temperature": ["--instruction.temperature", "-1"],
    "--instruction.top-p": ["--instruction.top-p", "0"],
    "--classification.max-tokens": ["--classification.max-tokens", "0"],
    "--instance-input-first.stop": [w for s in "abcde" for w in ("--instance-input-first.stop", s)],
    "--api-key-env": ["--api-key-env", "NOT_SET_ANYWHERE"],
    "--extra-body": ["--extra-body", "[1"],
    "--base-url": ["--base-url", "ftp://x"],
    "--outage-timeout": ["--outage-timeout", "nan"],
}


@pytest.mark.parametrize("flag", BAD)
def test_a_bad_flag_is_one_line_that_names_it_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, flag: str
) -> None:
    code, _ = parse(monkeypatch, "--run-dir", str(tmp_path / "r"), *BAD[flag])
    said = capsys.readouterr().err.strip().splitlines()
    assert code == 2
    assert len(said) == 1
    assert flag in said[0]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"nonsense = = 1", "c.toml"),
        (b"\xff\xfe", "not UTF-8"),
        (b"no_such_option = 1", "no_such_option"),
        (b'threshold = "high"', "threshold"),
        (b"[instruction]\nheat = 1", "heat"),
    ],
)
def test_a_bad_config_file_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, content: bytes, said: str
) -> None:
    file = tmp_path / "c.toml"
    file.write_bytes(content)
    code, _ = parse(monkeypatch, "--run-dir", str(tmp_path / "r"), "--config", str(file))
    lines = capsys.readouterr().err.strip().splitlines()
    assert code == 2
    assert len(lines) == 1
    assert said in lines[0]


def configuration(options: Options) -> dict[str, Any]:
    return run_configuration(options, model="m", contents={"seed_tasks": "s", "prompts": "p"})


def test_the_configuration_covers_the_method_and_leaves_speed_out() -> None:
    base = configuration(Options())
    faster = dataclasses.replace(Options().speed, concurrency=9, max_attempts=2)
    assert configuration(dataclasses.replace(Options(), speed=faster)) == base
    recording = dataclasses.replace(Options().similarity, record_top_k=10)
    assert configuration(dataclasses.replace(Options(), similarity=recording)) == base
    contents = {"seed_tasks": "s", "prompts": "p"}
    others = [run_configuration(Options(), model="n", contents=contents)]
    others += [
        run_configuration(Options(), model="m", contents=contents | change)
        for change in ({"seed_tasks": "t"}, {"prompts": "q"}, {"documents": "d"}, {"topics": "o"}, {"personas": "e"})
    ]
    for other in others:
        with pytest.raises(InputError, match="name a new run folder"):
            check_same_configuration(base, other, Path("run"))


def test_an_option_that_came_after_a_run_was_begun_has_its_default_there() -> None:
    base = configuration(Options())
    older = {name: value for name, value in base.items() if name not in {"classification_only", "threshold"}}
    check_same_configuration(older, base, Path("run"))
    for change in ({"classification_only": True}, {"threshold": 0.6}):
        with pytest.raises(InputError, match="name a new run folder"):
            check_same_configuration(older, base | change, Path("run"))


def test_thinking_is_fixed_for_a_runs_life_and_auto_in_runs_from_before_it() -> None:
    base = configuration(Options())
    older = {name: value for name, value in base.items() if name != "thinking"}
    check_same_configuration(older, base, Path("run"))
    with pytest.raises(InputError, match=r"--thinking auto \(not off\)"):
        check_same_configuration(older, configuration(Options(server=ServerOptions(thinking="off"))), Path("run"))


def test_thinking_goes_into_chat_requests_under_the_fields_of_the_user() -> None:
    server = ServerOptions(base_url=("http://host",), thinking="off", extra_body='{"chat_template_kwargs": {"x": 1}}')
    options = dataclasses.replace(Options(), server=server)
    (backend,) = _backends(options, server.base_url, None, "Qwen/Qwen3-8B")
    sampling = options.sampling.instruction
    chat = encode_request(backend.endpoint, Request(1, "answer", (Message("user", "hi"),), sampling))
    assert orjson.loads(chat)["chat_template_kwargs"] == {"enable_thinking": False, "x": 1}
    text = encode_request(backend.endpoint, Request(1, "instruction", "1.", sampling))
    assert orjson.loads(text)["chat_template_kwargs"] == {"x": 1}


def test_many_changes_are_summed_up_in_one_line() -> None:
    base = configuration(Options())
    rules = PRESETS["paper"]
    other = configuration(dataclasses.replace(Options(), rules=rules))
    with pytest.raises(InputError) as caught:
        check_same_configuration(base, other, Path("run"))
    assert "more" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_preset_gives_values_for_flags_that_exist() -> None:
    known = set(saved_values(Options())) | {"stop"}
    for preset in PRESETS:
        for api in ("completions", "chat"):
            assert set(preset_values(preset, api)) <= known


TOO_LARGE = "1" + "0" * 30
BAD_AT_ONCE: dict[str, list[str]] = {
    "--lsh-bands": ["--lsh-bands", "1025", "--lsh-rows", "4"],
    "--lsh-rows": ["--lsh-bands", "4", "--lsh-rows", "0"],
    "--seed": ["--seed", TOO_LARGE],
    "--yield-window": ["--yield-window", TOO_LARGE],
    "--drain-timeout": ["--drain-timeout", "1e300"],
    "--price-in": ["--price-in", "inf", "--price-out", "1"],
    "--extra-body: 'prompt'": ["--extra-body", '{"prompt": "x"}'],
    "--extra-body: no request": ["--extra-body", f'{{"seed": {TOO_LARGE}}}'],
    "--extra-body: not JSON": ["--extra-body", '{"min_p": NaN}'],
    "--server-args: cannot be split": ["--server-args=--chat-template 'x"],
    "--server-args: --max-num-seqs": ["--server-args=--max-num-seqs many"],
    "--server-args: 2 servers from --port on": ["--server-args=--port 65535", "--num-servers", "2"],
    "--base-url http://a/v1: give either": ["--base-url", "http://me:pw@a", "--api-key-env", "HOME"],
}


@pytest.mark.parametrize("complaint", BAD_AT_ONCE)
def test_a_value_that_cannot_work_is_refused_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, complaint: str
) -> None:
    code, options = parse(monkeypatch, "--run-dir", str(tmp_path / "r"), *BAD_AT_ONCE[complaint])
    (said,) = capsys.readouterr().err.strip().splitlines()
    assert (code, options) == (2, None)
    assert complaint in said
    assert "pw" not in said


@pytest.mark.parametrize(("bands", "rows"), [(1, 1), (MAX_BANDS, MAX_ROWS)])
def test_the_filter_takes_all_bands_and_rows_that_the_options_take(bands: int, rows: int) -> None:
    similarity = SimilarityOptions(lsh_bands=bands, lsh_rows=rows)
    assert NoveltyFilter(**dataclasses.asdict(similarity)).bands == Bands(bands, rows, 0.7)


@pytest.mark.parametrize("name", ["sk-live-hunter2", "hunter2", "HUNTER2"])
def test_a_key_in_place_of_the_name_of_its_variable_is_not_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str
) -> None:
    code, _ = parse(monkeypatch, "--run-dir", str(tmp_path / "r"), "--api-key-env", name)
    said = capsys.readouterr().err
    assert code == 2
    assert name not in said
    assert "not the key itself" in said


def test_server_arguments_may_begin_with_hyphens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    options = options_for(monkeypatch, "--run-dir", str(tmp_path / "run"), "--server-args", "--max-model-len 8192")
    assert options.server.server_args == "--max-model-len 8192"


def with_server_args(text: str) -> Options:
    return dataclasses.replace(Options(), server=dataclasses.replace(Options().server, server_args=text))


def test_a_flag_that_only_sounds_secret_is_kept_and_used_again() -> None:
    text = "--long-prefill-token-threshold 2048 --max-num-seqs 8"
    saved = saved_values(with_server_args(text))["server_args"]
    assert saved == text
    assert with_server_args(saved).server.server_args == text


@pytest.mark.parametrize(
    ("text", "flag"),
    [
        ("--hf-token hunter2 --seed 1", "--hf-token"),
        ("--hf-token=hunter2", "--hf-token"),
        ("--long-prefill-token-threshold ***", "--long-prefill-token-threshold"),  # of an older run folder
        ('--kv-transfer-config \'{"extra": {"secret_key": "hunter2"}}\'', "--kv-transfer-config"),
    ],
)
def test_a_secret_is_asked_for_again_on_resume(text: str, flag: str) -> None:
    options = dataclasses.replace(Options(), server=dataclasses.replace(Options().server, base_url=("http://a",)))
    kept = dataclasses.replace(options, server=dataclasses.replace(options.server, server_args=text))
    saved = saved_values(kept)["server_args"]
    assert "hunter2" not in saved
    with pytest.raises(InputError, match=f"the run folder does not keep the value of {flag}; give --server-args again"):
        with_server_args(saved)
    assert saved_values(dataclasses.replace(kept, server=dataclasses.replace(kept.server, server_args=saved)))


@pytest.mark.parametrize(
    "body", ['{"api_key": "s"}', '{"extra_headers": {"Authorization": "s"}}', '{"a": [{"X-Api-Key": "s"}]}']
)
def test_a_credential_in_the_body_of_requests_is_refused(body: str) -> None:
    options = dataclasses.replace(Options(), server=dataclasses.replace(Options().server, extra_body=body))
    with pytest.raises(InputError, match="name that with --api-key-env"):
        refuse_credentials(options)
    refuse_credentials(dataclasses.replace(options, server=ServerOptions(extra_body='{"stop_token_ids": [2]}')))


def paper(server_args: str = "", **more: Any) -> Options:
    server = dataclasses.replace(Options().server, server_args=server_args, **more)
    method = dataclasses.replace(Options().method, preset="paper")
    return dataclasses.replace(Options(), server=server, method=method)


@pytest.mark.parametrize(
    ("options", "saved", "args"),
    [
        (paper(), None, "--generation-config vllm"),
        (paper("--seed 1"), None, "--generation-config vllm --seed 1"),
        (paper("--generation_config=auto"), None, "--generation_config=auto"),
        (paper(base_url=("http://a",)), None, ""),
        (Options(), None, ""),
        (paper("--seed 1"), {"server_args": ""}, "--seed 1"),
        (paper("--seed 1"), {"server_args": "--generation-config vllm"}, "--generation-config vllm --seed 1"),
    ],
)
def test_servers_for_the_paper_preset_add_no_sampling_of_the_models_own(
    options: Options, saved: dict[str, Any] | None, args: str
) -> None:
    told = with_paper_server(options, saved)
    assert told.server.server_args == args
    (spec,) = gpu_server_specs("m", [Gpu("0", 80 << 30)], told.server.server_args)
    assert spec.command.count("--generation-config") == args.count("--generation-config")


def test_a_run_from_before_a_rule_resumes_and_reads_without_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What fastgen 31a1c03 wrote by default: other values of two rules, and nothing about those that came later."""
    older = dataclasses.replace(
        Options().rules, banned_words=BANNED_WORDS, punctuation_start="unicode", **RULES_OF_EARLIER_RUNS
    )
    begun = dataclasses.replace(Options(server=ServerOptions(api="completions")), rules=older)
    seeds = load_seed_tasks(default_seed_path())
    what = run_configuration(begun, model="m", contents={"seed_tasks": seed_fingerprint(seeds), "prompts": "p"})
    store = Store(folder := RunFolder(tmp_path / "run"))
    prompts = files("fastgen.methods.self_instruct").joinpath("prompt_files", "base.toml").read_bytes()
    folder.save_inputs(default_seed_path().read_bytes(), {"base.toml": prompts})
    store.begin(_without_later_rules(what), _without_later_rules(saved_values(begun)), "0")
    store.close()

    options = options_for(monkeypatch, "--run-dir", str(tmp_path / "run"))
    assert options.rules == older
    check_same_configuration(folder.header().configuration, what, folder.path)
    assert open_run(folder.path).rules == older
    stricter = options_for(monkeypatch, "--run-dir", str(tmp_path / "run"), "--reject-contradictions")
    asked = run_configuration(stricter, model="m", contents={"seed_tasks": seed_fingerprint(seeds), "prompts": "p"})
    with pytest.raises(InputError, match=r"--reject-contradictions False \(not True\); leave that as it was, or name"):
        check_same_configuration(folder.header().configuration, asked, folder.path)
    assert cli.run(["refilter", "--run-dir", str(folder.path), "--output", str(tmp_path / "same")]) == 0
    assert open_run(tmp_path / "same").rules == older
    new = ["--output", str(tmp_path / "new"), "--preset", "default"]
    assert cli.run(["refilter", "--run-dir", str(folder.path), *new]) == 0
    assert open_run(tmp_path / "new").rules == Options().rules


def _without_later_rules(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in RULES_OF_EARLIER_RUNS}
