"""What fastgen learns of a server and its model before a run, and the API that it chooses."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import orjson
import pytest

from fastgen.methods.chat_template import ChatTemplate
from fastgen.servers.describe import ServerFacts, choose_api, describe, names_a_base_model
from fastgen.servers.endpoint import Endpoint
from fastgen.servers.openai import OpenAIBackend
from fastgen.simulator import TEMPLATES, FaultServer, ServedModel
from fastgen.simulator.protocol import Exchange

MODEL = "test-model"
USER = {"role": "user", "content": "MARK"}


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    asyncio.run(coroutine)


async def facts_of(server: FaultServer, *, model: str = MODEL, **endpoint: Any) -> ServerFacts:
    async with OpenAIBackend(Endpoint(server.base_url, model, **endpoint)) as backend:
        return await describe(backend, ChatTemplate.from_renderings)


async def chosen(server: FaultServer, facts: ServerFacts, **endpoint: Any) -> tuple[str, str]:
    async with OpenAIBackend(Endpoint(server.base_url, MODEL, **endpoint)) as backend:
        return await choose_api(facts, backend)


def of_kind(template: str | None, **more: Any) -> FaultServer:
    return FaultServer(
        model=MODEL, kind=ServedModel(template=TEMPLATES[template] if template else None, **more), max_model_len=4096
    )


def replies(status: int, body: object, seen: list[Any] | None = None) -> Callable[[Exchange], None]:
    """A route that always answers the same."""

    def route(exchange: Exchange) -> None:
        if seen is not None:
            seen.append(orjson.loads(exchange.body))
        exchange.respond(status, body if isinstance(body, bytes) else orjson.dumps(body))

    return route


# -- vLLM --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_pre_query_has_the_tokens_of_the_chat(name: str) -> None:
    """With what the server adds to a completion prompt, and whatever the tokeniser does to blanks."""

    async def test() -> None:
        async with of_kind(name) as server, OpenAIBackend(Endpoint(server.base_url, MODEL)) as backend:
            facts = await describe(backend, ChatTemplate.from_renderings)
            assert (facts.is_chat, facts.context_tokens, facts.reason, facts.owned_by) == (True, 4096, "", "vllm")
            assert facts.template is not None
            tokens = {
                what: orjson.loads((await backend.ask(f"{backend.endpoint.root_url}/tokenize", body)).body)["tokens"]
                for what, body in {
                    "chat": {"messages": [{"role": "user", "content": "Tea"}]},
                    "prompt": {"prompt": f"{facts.template.pre_query()}Tea"},
                }.items()
            }
            assert tokens["prompt"] == tokens["chat"][: len(tokens["prompt"])]

    run(test())


@pytest.mark.parametrize("name", TEMPLATES)
def test_turns_and_system_messages_are_rendered_as_the_server_does(name: str) -> None:
    async def test() -> None:
        async with of_kind(name) as server:
            template = (await facts_of(server)).template
        assert template is not None
        served = TEMPLATES[name]
        turns = [USER | {"content": "Hi"}, {"role": "assistant", "content": "Yes."}, USER]
        expected = served.render(turns).partition("MARK")[0].removeprefix(served.bos)
        assert template.pre_query([("Hi", "Yes.")]) == expected
        if name == "gemma2":
            assert not template.takes_system
        else:
            instructed = [{"role": "system", "content": "Be brief."}, USER]
            expected = served.render(instructed).partition("MARK")[0].removeprefix(served.bos)
            assert template.pre_query(system="Be brief.") == expected

    run(test())


def test_the_template_is_that_of_the_requests() -> None:
    async def test() -> None:
        seen: list[Any] = []
        async with of_kind("chatml") as server:
            server.add_route("POST", "/tokenize", replies(400, {"error": "no"}, seen))
            await facts_of(server, extra_body={"chat_template_kwargs": {"enable_thinking": False}, "top_k": 5})
        assert seen[0]["chat_template_kwargs"] == {"enable_thinking": False}
        assert "top_k" not in seen[0]

    run(test())


def test_the_model_is_the_only_one_where_none_is_named() -> None:
    async def test() -> None:
        async with of_kind("chatml") as server:
            facts = await facts_of(server, model="")
        assert (facts.model, facts.root, facts.is_chat) == (MODEL, MODEL, True)

    run(test())


def test_a_base_model_has_no_template() -> None:
    async def test() -> None:
        async with of_kind(None) as server:
            facts = await facts_of(server)
            assert (facts.is_chat, facts.template) == (False, None)
            assert facts.reason == (
                "test-model has no chat template; give the text that precedes a question with --pre-query TEXT"
            )
            assert await chosen(server, facts) == (
                "completions",
                "test-model has no chat template: --api completions",
            )

    run(test())


@pytest.mark.real_server
def test_vllm_itself_tells_its_template(embedded_endpoint: tuple[str, str]) -> None:
    async def test() -> None:
        base_url, model = embedded_endpoint
        async with OpenAIBackend(Endpoint(base_url, model)) as backend:
            facts = await describe(backend, ChatTemplate.from_renderings)
            assert (facts.is_chat, facts.owned_by, facts.reason) == (True, "vllm", "")
            assert facts.context_tokens
            template = facts.template
            assert template is not None
            assert template.pre_query(system="Be brief.") == (
                "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n"
            )
            assert template.before_user.endswith("<|im_end|>\n<|im_start|>user\n")  # after a default system prompt
            assert template.assistant_to_user == "<|im_end|>\n<|im_start|>user\n"
            assert template.stop == ("<|im_end|>",)

    run(test())


# -- llama.cpp ---------------------------------------------------------------------------------------------------------


def llama_cpp(server: FaultServer, *, apply: bool = True) -> None:
    """Give the server the routes of llama.cpp's."""
    server.add_route("POST", "/tokenize", replies(200, {"tokens": []}))  # it knows `content` only
    server.add_route("POST", "/detokenize", replies(200, {"content": ""}))
    card = {"id": MODEL, "object": "model", "owned_by": "llamacpp", "meta": {"n_ctx_train": 8192}}
    server.add_route("GET", "/v1/models", replies(200, {"object": "list", "data": [card]}))
    server.add_route("GET", "/props", replies(200, {"default_generation_settings": {"n_ctx": 2048}}))

    def route(exchange: Exchange) -> None:
        prompt = TEMPLATES["chatml"].render(orjson.loads(exchange.body)["messages"])
        exchange.respond_json(orjson.dumps({"prompt": prompt}))

    if apply:
        server.add_route("POST", "/apply-template", route)


def test_llama_cpp_applies_its_template() -> None:
    async def test() -> None:
        async with FaultServer(model=MODEL) as server:
            llama_cpp(server)
            facts = await facts_of(server)
        assert facts.template is not None
        assert facts.template.pre_query() == "<|im_start|>user\n"
        assert (facts.is_chat, facts.context_tokens, facts.owned_by) == (True, 2048, "llamacpp")

    run(test())


# -- servers that do not tell ------------------------------------------------------------------------------------------

UNKNOWN = "the chat template is unknown: "
REMEDY = "; give the text that precedes a question with --pre-query TEXT"
NO_ROUTES = "the server has neither /tokenize for messages nor /apply-template"


@pytest.mark.parametrize(
    ("route", "reason"),
    [
        (replies(404, {"detail": "Not Found"}), NO_ROUTES),
        (replies(405, b""), NO_ROUTES),
        (replies(422, {"detail": [{"msg": "Field required"}]}), NO_ROUTES),
        (replies(200, b"<html>"), NO_ROUTES),
        (replies(200, [1]), NO_ROUTES),
        (replies(200, {"tokens": "x"}), NO_ROUTES),
        (replies(200, {"tokens": [True]}), NO_ROUTES),
        (replies(401, {"error": "Unauthorized"}), "/tokenize answers 401: Unauthorized"),
        (replies(500, {"error": {"message": "a\x1b[2J\nb"}}), "/tokenize answers 500: a\\x1b[2J b"),
    ],
)
def test_a_server_that_does_not_tell_is_normal(route: Callable[[Exchange], None], reason: str) -> None:
    async def test() -> None:
        async with FaultServer(model=MODEL) as server:
            server.add_route("POST", "/tokenize", route)
            facts = await facts_of(server)
            assert (facts.is_chat, facts.template, facts.reason) == (None, None, UNKNOWN + reason + REMEDY)
            assert await chosen(server, facts) == ("chat", "test-model answers chat requests: --api chat")

    run(test())


def test_a_template_that_changes_the_text_cannot_be_used() -> None:
    async def test() -> None:
        async with FaultServer(model=MODEL) as server:
            llama_cpp(server, apply=False)
            server.add_route("POST", "/apply-template", replies(200, {"prompt": "User: (hidden)"}))
            facts = await facts_of(server)
        assert (facts.is_chat, facts.template) == (True, None)
        assert facts.reason == UNKNOWN + "the chat template changes or repeats the user's text" + REMEDY

    run(test())


@pytest.mark.parametrize("models", [b"", b"[]", b'{"data": 3}', b'{"data": [{"id": 3, "max_model_len": "x"}, 4]}'])
def test_a_list_of_models_of_another_form_says_nothing(models: bytes) -> None:
    async def test() -> None:
        async with FaultServer(model=MODEL, kind=ServedModel(tokenizes=False)) as server:
            server.add_route("GET", "/v1/models", replies(200, models))
            facts = await facts_of(server)
        assert (facts.model, facts.context_tokens, facts.root, facts.owned_by) == (MODEL, None, "", "")

    run(test())


def test_a_server_that_is_gone_fails_nothing() -> None:
    async def test() -> None:
        async with FaultServer(model=MODEL) as server:
            pass
        facts = await facts_of(server)
        assert (facts.model, facts.is_chat) == (MODEL, None)
        assert facts.reason.startswith(UNKNOWN + "the server does not answer (")
        api, sentence = await chosen(server, facts)
        assert api == "completions"
        assert sentence.startswith("test-model did not answer a chat request (")

    run(test())


def test_a_key_is_not_shown() -> None:
    async def test() -> None:
        async with FaultServer(model=MODEL) as server:
            server.add_route("POST", "/tokenize", replies(500, {"error": "key sekret-7 is old"}))
            facts = await facts_of(server, api_key="sekret-7")
        assert "key *** is old" in facts.reason

    run(test())


# -- the choice of the API ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "api", "sentence"),
    [
        (ServerFacts("m", is_chat=True), "chat", "m has a chat template: --api chat"),
        (ServerFacts("m", is_chat=False), "completions", "m has no chat template: --api completions"),
        (
            ServerFacts("Qwen3-8B-Base", is_chat=True),
            "completions",
            "Qwen3-8B-Base is a base model by its name: --api ",
        ),
        (ServerFacts("x-base"), "completions", "x-base is a base model by its name: --api completions"),
    ],
)
def test_facts_decide_without_a_request(facts: ServerFacts, api: str, sentence: str) -> None:
    async def test() -> None:
        async with FaultServer(model=MODEL) as server:
            decided, said = await chosen(server, facts)
            assert server.counters.requests == 0
        assert (decided, said.startswith(sentence)) == (api, True)

    run(test())


@pytest.mark.parametrize(
    ("status", "body", "api", "sentence"),
    [
        (404, {"detail": "Not Found"}, "completions", "takes no chat requests (404: Not Found)"),
        (
            400,
            {"error": {"message": "tokenizer.chat_template is not set"}},
            "completions",
            "takes no chat requests (400",
        ),
        (503, {"error": "Loading"}, "completions", "takes no chat requests (503: Loading)"),
        (400, {"error": "use max_completion_tokens"}, "chat", "refused a request of one token (400: use max_comp"),
        (200, {"choices": []}, "chat", "answers chat requests"),
    ],
)
def test_a_chat_request_decides_where_facts_are_missing(status: int, body: Any, api: str, sentence: str) -> None:
    async def test() -> None:
        seen: list[Any] = []
        async with FaultServer(model=MODEL) as server:
            server.add_route("POST", "/v1/chat/completions", replies(status, body, seen))
            extra = {"max_tokens": None, "max_completion_tokens": 1}
            decided, said = await chosen(server, ServerFacts(MODEL), extra_body=extra)
        assert (decided, sentence in said, said.endswith(f": --api {api}")) == (api, True, True)
        assert seen[0]["max_completion_tokens"] == 1
        assert "max_tokens" not in seen[0]

    run(test())


@pytest.mark.parametrize(
    ("name", "is_base"),
    [
        ("Qwen/Qwen3-8B-Base", True),
        ("google/gemma-3-4b-pt", True),
        ("my_base_model", True),
        ("base/Qwen3-8B", False),
        ("database", False),
        ("base-model-chat", False),
        ("Mistral-7B-pt-br", False),
        ("Llama-3.1-8B-Instruct", False),
        ("", False),
    ],
)
def test_names_of_base_models(name: str, *, is_base: bool) -> None:
    assert names_a_base_model(name) == is_base
