"""The shipped test server: deterministic answers, faults on command, HTTP close to the socket, time from an engine."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

import aiohttp
import orjson
import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from fastgen.simulator.__main__ import main
from fastgen.simulator.answers import Writer
from fastgen.simulator.engine import Load, SlotEngine, VirtualClock, Work
from fastgen.simulator.faults import USUAL_FAULTS, Fault, FaultPlan, Reply
from fastgen.simulator.server import BLOCK_CHARACTERS, BLOCK_TOKENS, FaultServer, PrefixCache

GUARD_S = 20.0
PROMPT = "Come up with tasks:\n1. Describe the small garden of a river.\n2. List seven breads.\n3."


def run(test: Coroutine[Any, Any, None]) -> None:
    """Run a test's coroutine; a hang is a failure, not a stuck suite."""
    asyncio.run(asyncio.wait_for(test, GUARD_S))


async def post(server: FaultServer, route: str = "/v1/completions", **body: Any) -> tuple[int, Any]:
    """One request on a separate connection: (status, parsed body)."""
    asked = {"model": server.model, "prompt": PROMPT, "max_tokens": 400} | body
    url = server.base_url.removesuffix("/v1") + route
    async with aiohttp.ClientSession() as session, session.post(url, data=orjson.dumps(asked)) as response:
        return response.status, orjson.loads(await response.read())


async def get(server: FaultServer, route: str) -> bytes:
    async with aiohttp.ClientSession() as session, session.get(server.base_url.removesuffix("/v1") + route) as response:
        assert response.status == 200
        return await response.read()


class Wire:
    """A client that writes bytes and reads bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, server: FaultServer) -> Wire:
        host, _, port = server.base_url.removeprefix("http://").removesuffix("/v1").partition(":")
        return cls(*await asyncio.open_connection(host, int(port)))

    async def answer(self) -> tuple[bytes, bytes]:
        """(head, body) of the next answer."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"Content-Length: (\d+)", head)
        return head, await self.reader.readexactly(int(length[1]) if length else 0)

    async def close(self) -> None:
        self.writer.close()
        await self.writer.wait_closed()


# -- what it writes ----------------------------------------------------------------------------------------------------


def items(answer: str) -> list[str]:
    return [re.sub(r"^\d+\. ", "", line) for line in answer.strip().splitlines()]


def test_the_same_prompt_choice_and_seed_give_the_same_text() -> None:
    assert Writer(3).answer(PROMPT, 1) == Writer(3).answer(PROMPT, 1)
    texts = {Writer(seed).answer(PROMPT, choice) for seed in range(3) for choice in range(3)}
    texts |= {Writer(0).answer(PROMPT.replace("seven", "eight"))}
    assert len(texts) == 10


def test_text_does_not_depend_on_the_process() -> None:
    script = f"from fastgen.simulator import Writer; print(Writer(1).answer({PROMPT!r}), end='')"
    said = {
        subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    }
    assert said == {Writer(1).answer(PROMPT)}


def test_a_prompt_that_ends_in_a_number_is_continued_as_a_list() -> None:
    answer = Writer(0).answer(PROMPT)
    assert answer.startswith(" ")
    assert re.findall(r"^(\d+)\. ", answer, re.MULTILINE) == [str(number) for number in range(4, 11)]
    assert all(4 <= len(item.split()) <= 40 for item in items(answer))


def test_a_chat_that_lists_tasks_is_continued_after_its_last_number() -> None:
    answer = Writer(0).answer("Here are tasks.\n1. Describe a garden wall.\n2. List seven kinds of bread.\nWrite more.")
    assert answer.startswith("3. ")


def test_instructions_are_novel_but_for_the_share_that_copies_the_prompt() -> None:
    def sharing(similar_share: float) -> float:
        shown = "Explain why the number four matters to a bakery that sells bread"
        prompts = (f"{i}\n1. {shown}\n2." for i in range(300))
        written = [item for prompt in prompts for item in items(Writer(0, similar_share).answer(prompt))]
        close = sum(len(set(item.split()) & set(shown.split())) >= 9 for item in written)
        return close / len(written)

    assert sharing(0.0) == 0.0
    assert sharing(0.25) == pytest.approx(0.25, abs=0.04)
    assert sharing(1.0) == 1.0


def test_words_are_many_and_unevenly_frequent() -> None:
    counts = Counter(word for i in range(1000) for word in Writer(0, 0.0).answer(f"{i}\n1.").lower().split())
    assert len(counts) > 6000
    assert counts.most_common(50)[-1][1] > 100 * sorted(counts.values())[len(counts) // 2]


def test_no_instruction_holds_a_word_that_the_method_forbids() -> None:
    text = " ".join(Writer(0, 0.0).answer(f"{i}\n1.") for i in range(1000)).lower()
    forbidden = (
        r"\b(images?|graphs?|pictures?|files?|maps?|draw|plot|go to|videos?|audio|music|flowcharts?|diagrams?)\b"
    )
    assert re.findall(forbidden, text) == []


def test_classification_is_answered_yes_or_no() -> None:
    answers = Counter(Writer(0).answer(f"Task: Sort mail {i}.\nIs it classification?") for i in range(400))
    assert set(answers) == {" Yes", " No"}
    assert answers[" Yes"] == pytest.approx(100, abs=30)


def test_labelled_prompts_get_labels_with_inputs() -> None:
    answer = Writer(0).answer("Task: A\nClass label: Good\nFine day.\n\nTask: Tell if the review is good.\n")
    labels = re.findall(r"^Class label: (\w+)\nInput: .+$", answer, re.MULTILINE)
    assert len(labels) == len(set(labels)) in {2, 3}


def test_other_prompts_get_examples_some_without_input() -> None:
    answers = [Writer(0).answer(f"Task: A\nExample 1\nOutput: B\n\nTask: Tell joke {i}.\n") for i in range(100)]
    without = sum("Input:" not in answer for answer in answers)
    assert 20 < without < 60
    assert all(answer.count("Output:") == max(1, answer.count("Example ")) for answer in answers)


@given(st.text(), st.integers(0, 3))
def test_any_prompt_is_answered(prompt: str, choice: int) -> None:
    assert Writer(0).answer(prompt, choice).strip()


# -- what it serves ----------------------------------------------------------------------------------------------------


def test_both_apis_give_openai_shapes_with_usage() -> None:
    async def test() -> None:
        async with FaultServer() as server:
            status, text = await post(server, n=2)
            assert status == 200
            assert [choice["index"] for choice in text["choices"]] == [0, 1]
            assert text["choices"][0]["text"] == Writer().answer(PROMPT)
            assert text["usage"]["completion_tokens"] == server.counters.generation_tokens
            _, chat = await post(server, "/v1/chat/completions", messages=[{"role": "user", "content": PROMPT}])
            assert chat["choices"][0]["message"] == {"role": "assistant", "content": Writer().answer(PROMPT)}
            assert chat["choices"][0]["finish_reason"] == "stop"

    run(test())


def test_a_list_of_prompts_gives_n_choices_for_each() -> None:
    async def test() -> None:
        async with FaultServer(write=lambda prompt, i: f"{prompt}{i}") as server:
            _, answer = await post(server, prompt=["a", "b"], n=2)
            assert [choice["text"] for choice in answer["choices"]] == ["a0", "a1", "b0", "b1"]

    run(test())


def test_stop_strings_and_the_token_limit_end_a_text() -> None:
    async def test() -> None:
        async with FaultServer(write=lambda prompt, i: "one two\nthree\nfour") as server:
            _, stopped = await post(server, stop=["\nfour", "\nthree"])
            assert (stopped["choices"][0]["text"], stopped["choices"][0]["finish_reason"]) == ("one two", "stop")
            _, cut = await post(server, max_tokens=2)
            assert (cut["choices"][0]["text"], cut["choices"][0]["finish_reason"]) == ("one two\n", "length")
            assert cut["usage"]["completion_tokens"] == 2

    run(test())


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"prompt": ""}, 400),
        ({"prompt": None}, 400),
        ({"prompt": [1, 2]}, 400),
        ({"prompt": []}, 400),
        ({"n": 0}, 400),
        ({"max_tokens": -1}, 400),
        ({"max_tokens": "many"}, 400),
        ({"temperature": -0.1}, 400),
        ({"top_p": 0}, 400),
        ({"top_p": 1.1}, 400),
        ({"stop": [1]}, 400),
        ({"model": "other"}, 404),
        ({"prompt": "x" * 500}, 400),
    ],
)
def test_what_vllm_refuses_is_refused(body: dict[str, Any], status: int) -> None:
    async def test() -> None:
        async with FaultServer(max_model_len=100) as server:
            said, answer = await post(server, **body)
            assert said == status
            assert answer["error"]["code"] == status

    run(test())


def test_models_metrics_tokens_and_health_are_served() -> None:
    async def test() -> None:
        async with FaultServer(model="m", max_model_len=99) as server:
            models = orjson.loads(await get(server, "/v1/models"))
            assert (models["data"][0]["id"], models["data"][0]["max_model_len"]) == ("m", 99)
            assert await get(server, "/health") == b""
            await post(server)
            page = (await get(server, "/metrics")).decode()
            assert re.search(r'^vllm:generation_tokens_total\{engine="0",model_name="m"\} [1-9]', page, re.MULTILINE)
            assert re.search(r"^vllm:num_requests_running\{.*\} 0\.0$", page, re.MULTILINE)
            _, tokens = await post(server, "/tokenize")
            assert tokens["count"] == len(tokens["tokens"]) == len(PROMPT) // 4 + 1
            assert (await post(server, "/tokenize", prompt=None, messages=[{"role": "user", "content": "x"}]))[0] == 200
            assert (await post(server, "/tokenize", prompt=None, messages=3))[0] == 400
            assert (await post(server, "/v1/embeddings"))[0] == 404

    run(test())


def test_a_key_is_asked_for_under_v1_only() -> None:
    async def test() -> None:
        async with FaultServer(api_key="k") as server:
            assert (await post(server))[0] == 401
            await get(server, "/health")
            await get(server, "/metrics")

    run(test())


def test_common_prefixes_hit_the_prefix_cache_in_whole_blocks() -> None:
    cache = PrefixCache()
    head = "h" * (2 * BLOCK_CHARACTERS)
    cache.look_up(head + "a" * BLOCK_CHARACTERS + "rest")
    assert (cache.queries_tokens, cache.hits_tokens) == (3 * BLOCK_TOKENS, 0)
    cache.look_up(head + "b" * BLOCK_CHARACTERS)
    assert (cache.queries_tokens, cache.hits_tokens) == (6 * BLOCK_TOKENS, 2 * BLOCK_TOKENS)
    cache.look_up("x" + head)
    assert cache.hits_tokens == 2 * BLOCK_TOKENS


# -- faults ------------------------------------------------------------------------------------------------------------


def test_a_script_comes_first_and_chance_after_it() -> None:
    plan = FaultPlan([Fault.RESET, None], rate=1.0, kinds=[Fault.HUGE])
    plan.add(Fault.SLOW)
    assert [plan.next() for _ in range(5)] == [Fault.RESET, None, Fault.SLOW, Fault.HUGE, Fault.HUGE]


def test_chance_is_the_same_for_the_same_seed_and_keeps_its_rate() -> None:
    def drawn(seed: int) -> list[Any]:
        plan = FaultPlan(rate=0.25, seed=seed)
        return [plan.next() for _ in range(4000)]

    assert drawn(1) == drawn(1) != drawn(2)
    faults = [fault for fault in drawn(1) if fault is not None]
    assert len(faults) == pytest.approx(1000, abs=100)
    assert set(faults) == set(USUAL_FAULTS)


def test_injected_faults_are_counted_and_planned_over_http() -> None:
    async def test() -> None:
        async with FaultServer(script=[Fault.SERVER_ERROR, Reply(418, b"{}")]) as server:
            assert [(await post(server))[0] for _ in range(3)] == [500, 418, 200]
            assert (await post(server, "/faults", script=["503", None], rate=1.0, kinds=["429"]))[0] == 200
            assert [(await post(server))[0] for _ in range(4)] == [503, 200, 429, 429]
            assert (await post(server, "/faults", script=["no such fault"]))[0] == 400
            report = orjson.loads(await get(server, "/faults"))
            assert report["injected"] == {"500": 1, "reply-418": 1, "503": 1, "429": 2}
            assert report["requests"] == 7
            assert report["answered"] == 2
            assert report["cpu_s"] > 0

    run(test())


def test_a_refused_server_listens_again_on_the_same_port() -> None:
    async def test() -> None:
        async with FaultServer() as server:
            url = server.base_url
            wire = await Wire.open(server)
            await server.until(lambda: server.counters.open_connections == 1)
            await server.refuse()
            with pytest.raises(ConnectionResetError):
                await wire.reader.read()
            wire.writer.close()
            with pytest.raises(ConnectionRefusedError):
                await Wire.open(server)
            await server.listen()
            assert server.base_url == url
            assert (await post(server))[0] == 200

    run(test())


# -- HTTP --------------------------------------------------------------------------------------------------------------

BODY = orjson.dumps({"model": "test-model-base", "prompt": "Say hi", "max_tokens": 8})
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\ncontent-length: %d\r\n" % len(BODY)


def on_the_wire(test: Callable[[FaultServer, Wire], Coroutine[Any, Any, None]]) -> None:
    async def whole() -> None:
        async with FaultServer() as server:
            wire = await Wire.open(server)
            await test(server, wire)
            await wire.close()

    run(whole())


def test_a_request_in_single_bytes_is_understood() -> None:
    async def test(server: FaultServer, wire: Wire) -> None:
        for byte in HEAD + b"\r\n" + BODY:
            wire.writer.write(bytes([byte]))
            await wire.writer.drain()
        head, body = await wire.answer()
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert json.loads(body)["choices"]

    on_the_wire(test)


def test_pipelined_requests_are_answered_in_turn() -> None:
    async def test(server: FaultServer, wire: Wire) -> None:
        wire.writer.write((HEAD + b"\r\n" + BODY) * 3 + b"GET /health HTTP/1.1\r\n\r\n")
        for _ in range(3):
            assert json.loads((await wire.answer())[1])["choices"]
        assert (await wire.answer())[1] == b""
        assert server.counters.connections == 1

    on_the_wire(test)


def test_a_client_that_waits_for_100_gets_it() -> None:
    async def test(server: FaultServer, wire: Wire) -> None:
        wire.writer.write(HEAD + b"Expect: 100-continue\r\n\r\n")
        assert await wire.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        wire.writer.write(BODY)
        assert (await wire.answer())[0].startswith(b"HTTP/1.1 200")

    on_the_wire(test)


@pytest.mark.parametrize("head", [HEAD + b"Connection: close\r\n\r\n", HEAD.replace(b"1.1", b"1.0") + b"\r\n"])
def test_a_client_can_ask_for_its_connection_to_be_closed(head: bytes) -> None:
    async def test(server: FaultServer, wire: Wire) -> None:
        wire.writer.write(head + BODY)
        await wire.answer()
        assert await wire.reader.read() == b""

    on_the_wire(test)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"POST /v1/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", b"411"),
        (b"POST /v1/completions HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n", b"413"),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * (1 << 17), b"431"),
    ],
)
def test_what_the_server_does_not_speak_is_refused(sent: bytes, status: bytes) -> None:
    async def test(server: FaultServer, wire: Wire) -> None:
        wire.writer.write(sent)
        head, _ = await wire.answer()
        assert head.startswith(b"HTTP/1.1 " + status)

    on_the_wire(test)


# -- time --------------------------------------------------------------------------------------------------------------


def test_slots_bound_what_runs_and_waiting_work_follows_in_order() -> None:
    clock, finished = VirtualClock(), list[tuple[int, float]]()
    engine = SlotEngine(slots=2, latency_s=1.0, clock=clock)
    for number in range(5):
        engine.submit(Work(1, (1,)), lambda number=number: finished.append((number, clock.now_s())))  # type: ignore[misc]  # bound now
    assert engine.load() == Load(2, 3, 1.0, 0, 0.0)
    clock.run_until(0.5)
    assert engine.load() == Load(2, 3, 1.0, 0, 1.0)
    clock.run()
    assert finished == [(0, 1.0), (1, 1.0), (2, 2.0), (3, 2.0), (4, 3.0)]
    assert engine.load() == Load(0, 0, 0.0, 0, 5.0)


def test_a_request_is_done_when_its_last_sequence_is() -> None:
    clock, done = VirtualClock(), list[float]()
    engine = SlotEngine(slots=2, seconds_per_token=0.5, clock=clock)
    engine.submit(Work(1, (1, 20, 1)), lambda: done.append(clock.now_s()))
    assert (engine.load().running, engine.load().waiting) == (2, 1)
    clock.run()
    assert done == [10.0]
    assert engine.load() == Load(0, 0, 0.0, 0, 11.0)


def test_cancelled_work_frees_its_slots_and_is_never_done() -> None:
    clock, done = VirtualClock(), list[float]()
    engine = SlotEngine(slots=2, latency_s=1.0, clock=clock)
    cancel = engine.submit(Work(1, (1, 1, 1)), pytest.fail)
    engine.submit(Work(1, (1,)), lambda: done.append(clock.now_s()))
    clock.run_until(0.25)
    cancel()
    assert (engine.load().running, engine.load().waiting) == (1, 0)
    clock.run()
    assert (done, engine.load().running) == ([1.25], 0)


def test_the_slots_run_on_the_event_loop_s_time_by_default() -> None:
    async def test() -> None:
        done = asyncio.Event()
        SlotEngine(slots=1, latency_s=0.001).submit(Work(1, (1, 1)), done.set)
        await done.wait()

    run(test())


def test_without_latency_work_is_done_at_once() -> None:
    done: list[int] = []
    SlotEngine().submit(Work(1, (1,)), lambda: done.append(1))()
    assert done == [1]


# -- the process -------------------------------------------------------------------------------------------------------


def test_the_module_serves_until_a_signal() -> None:
    command = [
        sys.executable,
        "-m",
        "fastgen.simulator",
        "--port",
        "0",
        "--script",
        "500",
        "--model",
        "m",
        "--slots",
        "4",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().removeprefix("listening on ").strip()
        with urllib.request.urlopen(url + "/models", timeout=GUARD_S) as answer:  # noqa: S310 - our own server
            assert json.load(answer)["data"][0]["id"] == "m"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=GUARD_S) == 0


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--faults", "earthquake"),
        ("--script", "reset,earthquake"),
        ("--fault-rate", "1.5"),
        ("--similar-share", "-0.1"),
        ("--latency", "-1"),
        ("--latency", "nan"),
        ("--seconds-per-token", "inf"),
        ("--slots", "0"),
        ("--apis", "embeddings"),
        ("--port", "70000"),
        ("--host", "192.0.2.1"),
    ],
)
def test_a_bad_argument_is_one_line_that_names_it_and_exit_code_2(
    flag: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--port", "0", flag, value]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert flag in said


def test_it_serves_under_uvloop_too() -> None:
    async def test() -> None:
        async with FaultServer(script=[None, Fault.RESET]) as server:
            assert (await post(server))[0] == 200
            with pytest.raises(aiohttp.ClientOSError):
                await post(server)

    uvloop.run(asyncio.wait_for(test(), GUARD_S))
