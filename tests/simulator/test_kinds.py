"""The kinds of model that the server stands in for: templates, forms of answers, refusals, what the model writes."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import aiohttp
import orjson
import pytest

from fastgen.simulator import TEMPLATES, AnswerForm, FaultServer, Schemas, ServedModel, Writer
from fastgen.simulator.__main__ import _make_server, _parser
from fastgen.simulator.answers import is_pre_query
from fastgen.simulator.schemas import fitting_json

QUESTION = "How do bridges stay up?"
THINKS = tuple(form for form in AnswerForm if form is not AnswerForm.PLAIN)


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    asyncio.run(coroutine)


async def post(server: FaultServer, route: str, **body: Any) -> tuple[int, Any]:
    url = server.base_url.removesuffix("/v1") + route
    data = orjson.dumps({"model": server.model} | body)
    async with aiohttp.ClientSession() as session, session.post(url, data=data) as response:
        return response.status, orjson.loads(await response.read())


async def chat(server: FaultServer, content: str = QUESTION, **body: Any) -> tuple[int, Any]:
    asked = {"messages": [{"role": "user", "content": content}], "max_tokens": 600} | body
    return await post(server, "/v1/chat/completions", **asked)


async def message(server: FaultServer, **body: Any) -> dict[str, Any]:
    status, answer = await chat(server, **body)
    assert status == 200
    said: dict[str, Any] = answer["choices"][0]["message"]
    return said


# -- templates and tokens ----------------------------------------------------------------------------------------------

TALK = [{"role": "user", "content": " Hi "}, {"role": "assistant", "content": "<think>hm</think>Yes."}]


@pytest.mark.parametrize("name", [name for name, template in TEMPLATES.items() if not template.writes_blank])
def test_tokens_of_messages_are_those_of_the_rendered_text(name: str) -> None:
    async def test() -> None:
        async with FaultServer(kind=ServedModel(template=TEMPLATES[name])) as server:
            _, tokenized = await post(server, "/tokenize", messages=[*TALK, {"role": "user", "content": "é漢字"}])
            _, text = await post(server, "/detokenize", tokens=tokenized["tokens"])
            assert tokenized["count"] == len(tokenized["tokens"])
            assert text["prompt"].endswith("é漢字" + TEMPLATES[name].user[1] + TEMPLATES[name].opening)
            assert "hm" not in text["prompt"]
            _, again = await post(server, "/tokenize", prompt=text["prompt"], add_special_tokens=False)
            assert again["tokens"] == tokenized["tokens"]

    run(test())


def test_a_completion_prompt_begins_with_the_token_of_the_sequence() -> None:
    async def test() -> None:
        async with FaultServer(kind=ServedModel(template=TEMPLATES["llama3"])) as server:
            _, plain = await post(server, "/tokenize", prompt="Hi", add_special_tokens=False)
            _, special = await post(server, "/tokenize", prompt="Hi")
            assert special["tokens"][1:] == plain["tokens"]
            _, text = await post(server, "/detokenize", tokens=special["tokens"])
            assert text["prompt"] == "<|begin_of_text|>Hi"

    run(test())


def test_an_empty_block_of_reasoning_is_opened_without_thinking() -> None:
    assert TEMPLATES["chatml"].render(TALK[:1], thinking=False).endswith("assistant\n<think>\n\n</think>\n\n")


def test_a_system_message_may_be_refused_or_merged() -> None:
    async def test() -> None:
        instructed = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
        async with FaultServer(kind=ServedModel(template=TEMPLATES["gemma2"])) as server:
            for route in ("/tokenize", "/v1/chat/completions"):
                status, answer = await post(server, route, messages=instructed)
                assert (status, answer["error"]["message"]) == (400, "System role not supported")
        assert "user\nBe brief.\n\nHi<end_of_turn>" in TEMPLATES["gemma3"].render(instructed)

    run(test())


def test_a_base_model_refuses_chats_as_vllm_does() -> None:
    async def test() -> None:
        async with FaultServer(kind=ServedModel(template=None)) as server:
            for route in ("/tokenize", "/v1/chat/completions"):
                status, answer = await post(server, route, messages=TALK)
                assert status == 400
                assert "must provide a chat template" in answer["error"]["message"]
            assert (await post(server, "/v1/completions", prompt="Once"))[0] == 200
            assert (await post(server, "/tokenize", prompt="Once"))[0] == 200

    run(test())


@pytest.mark.parametrize("body", [{"tokens": [10**9]}, {"tokens": ["x"]}, {"tokens": 3}])
def test_tokens_that_do_not_exist_are_refused(body: dict[str, Any]) -> None:
    async def test() -> None:
        async with FaultServer() as server:
            assert (await post(server, "/detokenize", **body))[0] == 400

    run(test())


def test_a_server_may_have_no_tokenizer() -> None:
    async def test() -> None:
        async with FaultServer(kind=ServedModel(tokenizes=False)) as server:
            assert (await post(server, "/tokenize", prompt="x"))[0] == 404
            assert (await post(server, "/detokenize", tokens=[]))[0] == 404

    run(test())


# -- forms of answers --------------------------------------------------------------------------------------------------


def test_where_the_reasoning_of_an_answer_is() -> None:
    async def test() -> None:
        plain = Writer().answer(QUESTION)
        thought = Writer().reasoning(QUESTION, 0, 4)
        content = {
            AnswerForm.PLAIN: plain,
            AnswerForm.REASONING_CONTENT: plain,
            AnswerForm.REASONING: plain,
            AnswerForm.THINK: f"<think>\n{thought}\n</think>\n\n{plain}",
            AnswerForm.THINK_END: f"{thought}\n</think>\n\n{plain}",
            AnswerForm.UNCLOSED_THINK: f"<think>\n{thought}",
            AnswerForm.NULL_CONTENT: None,
            AnswerForm.HARMONY: f"<|channel|>analysis<|message|>{thought}<|end|>"
            f"<|start|>assistant<|channel|>final<|message|>{plain}",
        }
        for form in AnswerForm:
            async with FaultServer(kind=ServedModel(form=form)) as server:
                _, answer = await chat(server)
                said = answer["choices"][0]["message"]
                assert said["content"] == content[form], form
                is_separate = form in (AnswerForm.REASONING_CONTENT, AnswerForm.REASONING, AnswerForm.NULL_CONTENT)
                field = "reasoning" if form is AnswerForm.REASONING else "reasoning_content"
                assert said.get(field) == (thought if is_separate else None), form
                never_ends = form in (AnswerForm.UNCLOSED_THINK, AnswerForm.NULL_CONTENT)
                assert answer["choices"][0]["finish_reason"] == ("length" if never_ends else "stop"), form
                assert (answer["usage"]["completion_tokens"] == 600) == never_ends, form

    run(test())


@pytest.mark.parametrize("form", THINKS)
def test_thinking_is_switched_off(form: AnswerForm) -> None:
    async def test() -> None:
        async with FaultServer(kind=ServedModel(form=form)) as server:
            off = await message(server, chat_template_kwargs={"enable_thinking": False})
            assert off == await message(server, reasoning_effort="none")
            low, high = [await message(server, reasoning_effort=effort) for effort in ("low", "high")]
            assert len(str(low)) < len(str(high))
            if form is AnswerForm.HARMONY:
                assert off == low
            else:
                assert off == {"role": "assistant", "content": Writer().answer(QUESTION)}
        async with FaultServer(kind=ServedModel(form=form, switches_thinking=False)) as server:
            assert await message(server, chat_template_kwargs={"enable_thinking": False}) == await message(server)

    run(test())


def test_tokens_that_end_within_the_reasoning_leave_no_content() -> None:
    async def test() -> None:
        async with FaultServer(kind=ServedModel(form=AnswerForm.REASONING)) as server:
            said = await message(server, max_tokens=10)
            assert said["content"] is None
            assert said["reasoning"]

    run(test())


def test_a_completion_has_no_form() -> None:
    async def test() -> None:
        async with FaultServer(kind=ServedModel(form=AnswerForm.THINK)) as server:
            _, answer = await post(server, "/v1/completions", prompt=QUESTION, max_tokens=600)
            assert answer["choices"][0]["text"] == Writer().answer(QUESTION)

    run(test())


def test_a_server_may_ignore_n() -> None:
    async def test() -> None:
        async with FaultServer(kind=ServedModel(ignores_n=True)) as server:
            assert len((await chat(server, n=3))[1]["choices"]) == 1

    run(test())


# -- schemas -----------------------------------------------------------------------------------------------------------

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "instruction": {"type": "string"},
        "kind": {"enum": ["open", "closed"]},
        "score": {"type": "integer", "minimum": 1, "maximum": 5},
        "is_good": {"type": "boolean"},
        "nothing": {"type": "null"},
        "always": {"const": 3},
        "short": {"type": "string", "maxLength": 5},
        "either": {"anyOf": [{"type": "array", "items": {"$ref": "#/$defs/one"}, "minItems": 2, "maxItems": 2}]},
    },
    "$defs": {"one": {"type": "object", "properties": {"output": {"type": ["string", "null"]}}}},
}
FORMATS: list[dict[str, Any]] = [
    {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}},
    {"structured_outputs": {"json": SCHEMA}},
    {"structured_outputs": {"json": orjson.dumps(SCHEMA).decode()}},
]


@pytest.mark.parametrize("wanted", FORMATS)
@pytest.mark.parametrize("form", [AnswerForm.PLAIN, AnswerForm.REASONING])
def test_an_answer_fits_its_schema(wanted: dict[str, Any], form: AnswerForm) -> None:
    async def test() -> None:
        async with FaultServer(kind=ServedModel(form=form, schemas=Schemas.HONOUR)) as server:
            value = orjson.loads((await message(server, **wanted))["content"])
        assert set(value) == set(SCHEMA["properties"])
        assert len(value["instruction"].split()) > 3
        assert value["kind"] in ("open", "closed")
        assert 1 <= value["score"] <= 5
        assert (value["nothing"], value["always"], len(value["short"])) == (None, 3, 5)
        assert isinstance(value["is_good"], bool)
        assert [isinstance(one["output"], str) for one in value["either"]] == [True, True]

    run(test())


def test_a_choice_is_one_of_those_given() -> None:
    async def test() -> None:
        async with FaultServer(kind=ServedModel(schemas=Schemas.HONOUR)) as server:
            said = await message(server, structured_outputs={"choice": ["yes", "no"]})
            assert orjson.loads(said["content"]) in ("yes", "no")

    run(test())


@pytest.mark.parametrize("wanted", FORMATS)
def test_a_schema_is_refused_or_ignored(wanted: dict[str, Any]) -> None:
    async def test() -> None:
        async with FaultServer(kind=ServedModel(schemas=Schemas.REFUSE)) as server:
            assert (await chat(server, **wanted))[0] == 400
            assert (await chat(server, response_format={"type": "text"}))[0] == 200
        async with FaultServer() as server:
            assert (await message(server, **wanted))["content"] == Writer().answer(QUESTION)

    run(test())


@pytest.mark.parametrize(
    "wanted",
    [
        {"response_format": {"type": "json_schema"}},
        {"response_format": 3},
        {"structured_outputs": {"json": "{"}},
        {"structured_outputs": {"json": [1]}},
        {"chat_template_kwargs": 3},
        {"reasoning_effort": 3},
    ],
)
def test_a_field_of_a_wrong_kind_is_refused(wanted: dict[str, Any]) -> None:
    async def test() -> None:
        async with FaultServer() as server:
            assert (await chat(server, **wanted))[0] == 400

    run(test())


def test_a_schema_without_end_is_cut() -> None:
    endless = {"type": "object", "properties": {"next": {"$ref": "#"}}}
    assert fitting_json(endless, "x").endswith("null" + "}" * 12)
    assert orjson.loads(fitting_json({"$ref": "#/nowhere"}, "x")) is None


# -- what the model writes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_prompt_that_ends_where_a_user_begins_is_recognised(name: str) -> None:
    rendered = TEMPLATES[name].render([{"role": "user", "content": "MARK"}])
    assert is_pre_query(rendered.partition("MARK")[0])
    assert not is_pre_query(rendered)


def test_such_a_prompt_is_completed_differently_each_time() -> None:
    async def test() -> None:
        prompt = "<|im_start|>user\n"
        async with FaultServer() as server, FaultServer() as other:
            texts = []
            for _ in range(40):
                _, answer = await post(server, "/v1/completions", prompt=prompt, max_tokens=100, n=2)
                texts += [choice["text"] for choice in answer["choices"]]
            assert len(set(texts)) == 80
            assert sum(text.endswith("?") for text in texts) > 5
            _, answer = await post(other, "/v1/completions", prompt=prompt, max_tokens=100, n=2)
            assert [choice["text"] for choice in answer["choices"]] == texts[:2]
            seeded = [
                (await post(server, "/v1/completions", prompt=prompt, max_tokens=100, seed=seed))[1]["choices"][0][
                    "text"
                ]
                for seed in (7, 8, 7)
            ]
            assert seeded[0] == seeded[2] != seeded[1]

    run(test())


def answers(prompt: str) -> list[str]:
    return [Writer(seed).answer(prompt) for seed in range(40)]


def test_an_instruction_is_rewritten_into_others() -> None:
    prompt = "Rewrite the given prompt into a more demanding one.\n\nGiven prompt: Name a river.\nRewritten prompt:"
    rewritten = answers(prompt)
    assert len(set(rewritten)) == 40
    assert all(len(text.split()) > 12 and "\n" not in text for text in rewritten)


@pytest.mark.parametrize(
    ("prompt", "verdicts"),
    [
        ("Do these two instructions have the same constraints? Answer Equal or Not Equal.", {"Equal", "Not Equal"}),
        ("Are these two questions equivalent? Answer yes or no.", {"Yes", "No"}),
        ("Score how well the answer fits, from 1 to 5. Reply with only the number.", set("12345")),
    ],
)
def test_a_verdict_is_short(prompt: str, verdicts: set[str]) -> None:
    assert set(answers(prompt)) == verdicts


def test_a_score_may_come_with_its_reason() -> None:
    assert all(text.splitlines()[-1].startswith("Score: ") for text in answers("Rate this answer on a 5-point scale."))


@pytest.mark.parametrize(
    "prompt",
    [
        "Below is a text. Which instruction would it answer?\n\n" + "Rivers carry sand. " * 200,
        "Write one new instruction for a chat assistant.",
    ],
)
def test_one_instruction_is_written(prompt: str) -> None:
    written = answers(prompt)
    assert len(set(written)) == 40
    assert all("\n" not in text and not text[0].isdigit() for text in written)


def test_a_question_gets_a_paragraph() -> None:
    assert all(text.count(".") >= 3 and "\n" not in text for text in answers(QUESTION))


def test_what_the_model_wrote_is_answered_not_continued() -> None:
    """No text of the model's own looks like a prompt of another kind, also after it was rewritten."""
    for seed in range(150):
        asked = Writer(seed).answer("<|im_start|>user\n")
        rewritten = Writer(seed).answer(f"Rewrite this prompt: {asked}")
        assert all(
            text.startswith("The ") and text.count(".") >= 3 for text in map(Writer().answer, (asked, rewritten))
        )


def test_the_command_line_sets_the_kind() -> None:
    flags = "--template gemma2 --answer-form think --always-thinks --ignore-n --schemas honour --no-tokenize"
    assert _make_server(_parser().parse_args(flags.split())).kind == ServedModel(
        TEMPLATES["gemma2"], AnswerForm.THINK, False, True, Schemas.HONOUR, False
    )
    assert _make_server(_parser().parse_args(["--template", "none"])).kind.template is None
    assert _make_server(_parser().parse_args([])).kind == ServedModel()
