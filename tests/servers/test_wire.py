"""Requests as bytes, bytes as completions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgen.errors import PromptTooLong, RequestRejected, TransientError
from fastgen.servers.endpoint import Endpoint
from fastgen.servers.protocol import decode_completions, encode_request
from fastgen.types import Completion, Message, Request, Sampling

COMPLETIONS = Endpoint("http://host", "m")
CHAT = Endpoint("http://host", "m", api="chat")


MESSAGES = Request(1, "instruction", (Message("user", "hi"),), Sampling(0.7, 0.5, 32))


def request(prompt: str | tuple[Message, ...] = "Say hi", n: int = 1, **sampling: Any) -> Request:
    settings: dict[str, Any] = {"temperature": 0.7, "top_p": 0.5, "max_tokens": 32} | sampling
    return Request(1, "instruction", prompt, Sampling(**settings), n=n)


def several(*prompts: str, n: int = 1) -> Request:
    subjects = tuple(range(len(prompts)))
    return Request(1, "classification", prompts, Sampling(0.0, 1.0, 3), subjects, n=n)


def body(endpoint: Endpoint, asked: Request) -> dict[str, Any]:
    decoded: dict[str, Any] = orjson.loads(encode_request(endpoint, asked))
    return decoded


def answer(*choices: Any, usage: Any = None) -> bytes:
    return orjson.dumps({"choices": list(choices), "usage": usage})


def choice(index: int = 0, text: Any = "hi", finish_reason: Any = "stop") -> dict[str, Any]:
    return {"index": index, "text": text, "finish_reason": finish_reason}


def test_a_plain_request_states_its_length_and_sampling_and_nothing_more() -> None:
    assert body(COMPLETIONS, request()) == {
        "model": "m",
        "prompt": "Say hi",
        "max_tokens": 32,
        "temperature": 0.7,
        "top_p": 0.5,
    }


def test_penalties_stops_and_n_are_stated_where_they_say_something() -> None:
    sent = body(COMPLETIONS, request(n=3, presence_penalty=2.0, frequency_penalty=-0.5, stop=("\n\n", "\n16.")))
    assert sent["n"] == 3
    assert sent["presence_penalty"] == 2.0
    assert sent["frequency_penalty"] == -0.5
    assert sent["stop"] == ["\n\n", "\n16."]


def test_at_most_four_stop_strings_are_sent() -> None:
    assert body(COMPLETIONS, request(stop=("a", "b", "c", "d", "e")))["stop"] == ["a", "b", "c", "d"]


def test_a_top_p_of_zero_is_sent_as_greedy_sampling() -> None:
    sent = body(COMPLETIONS, request(top_p=0.0))
    assert (sent["temperature"], sent["top_p"]) == (0.0, 1.0)


def test_chat_messages_are_sent_with_role_and_content() -> None:
    sent = body(CHAT, request((Message("system", "Be brief."), Message("user", "Hi ☺"))))
    assert sent["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi ☺"}]
    assert "prompt" not in sent


def test_the_extra_body_comes_last_and_null_removes_a_field() -> None:
    extra = {"min_p": 0.1, "temperature": 1.5, "max_tokens": None, "max_completion_tokens": 9}
    sent = body(Endpoint("http://host", "m", extra_body=extra), request())
    assert sent["min_p"] == 0.1
    assert sent["temperature"] == 1.5
    assert "max_tokens" not in sent
    assert sent["max_completion_tokens"] == 9


def test_several_prompts_are_sent_as_a_list() -> None:
    assert body(COMPLETIONS, several("a", "b", "c"))["prompt"] == ["a", "b", "c"]


def test_the_prompt_decides_which_api_is_asked_whatever_the_runs_own_is() -> None:
    for endpoint in (COMPLETIONS, CHAT):
        assert body(endpoint, request("text"))["prompt"] == "text"
        assert body(endpoint, several("two", "texts"))["prompt"] == ["two", "texts"]
        assert body(endpoint, MESSAGES)["messages"] == [{"role": "user", "content": "hi"}]


def test_fields_for_chats_are_below_all_others_and_not_in_completions() -> None:
    chat: dict[str, Any] = {"chat_template_kwargs": {"enable_thinking": False}, "reasoning_effort": "low"}
    extra = {"chat_template_kwargs": {"custom": 1}, "reasoning_effort": "high"}
    endpoint = Endpoint("http://host", "m", chat_body=chat, extra_body=extra)
    sent = body(endpoint, MESSAGES)
    assert sent["chat_template_kwargs"] == {"enable_thinking": False, "custom": 1}
    assert sent["reasoning_effort"] == "high"
    assert body(endpoint, request())["chat_template_kwargs"] == {"custom": 1}
    users = Endpoint("http://host", "m", chat_body=chat, extra_body={"chat_template_kwargs": {"enable_thinking": True}})
    assert body(users, MESSAGES)["chat_template_kwargs"] == {"enable_thinking": True}
    removed = Endpoint("http://host", "m", chat_body=chat, extra_body={"chat_template_kwargs": None})
    assert "chat_template_kwargs" not in body(removed, MESSAGES)


def test_a_request_may_carry_fields_which_the_users_replace() -> None:
    form = {"type": "json_object"}
    asked = replace(MESSAGES, extra={"response_format": form, "min_p": 0.2, "temperature": 0.1})
    assert body(CHAT, asked)["response_format"] == form
    sent = body(Endpoint("http://host", "m", extra_body={"min_p": 0.1, "response_format": None}), asked)
    assert (sent["min_p"], sent["temperature"]) == (0.1, 0.1)
    assert "response_format" not in sent


def test_a_prompt_that_is_no_unicode_is_rejected() -> None:
    with pytest.raises(RequestRejected, match="JSON"):
        encode_request(COMPLETIONS, request("\ud800"))


def test_one_prompt_that_is_no_unicode_asks_for_smaller_requests() -> None:
    with pytest.raises(PromptTooLong, match="JSON"):
        encode_request(COMPLETIONS, several("a", "\ud800"))


def test_choices_come_in_the_order_of_their_indexes() -> None:
    decoded = decode_completions(answer(choice(1, "b"), choice(2, "c"), choice(0, "a")), COMPLETIONS, request(n=3))
    assert [one.text for one in decoded] == ["a", "b", "c"]


def test_a_lone_choice_may_leave_its_index_out() -> None:
    assert decode_completions(answer({"text": "x"}), COMPLETIONS, request()) == (Completion("x", None),)


def test_usage_is_shared_over_the_choices_and_the_prompt_counts_once() -> None:
    usage = {"prompt_tokens": 10, "completion_tokens": 8, "total_tokens": 18}
    decoded = decode_completions(answer(choice(0), choice(1), choice(2), usage=usage), COMPLETIONS, request(n=3))
    assert [one.prompt_tokens for one in decoded] == [10, 0, 0]
    assert [one.completion_tokens for one in decoded] == [3, 3, 2]


@pytest.mark.parametrize(
    "usage",
    [
        None,
        7,
        [],
        {},
        {"prompt_tokens": None},
        {"prompt_tokens": "5", "completion_tokens": -1},
        {"prompt_tokens": True},
        {"prompt_tokens": 1 << 62, "completion_tokens": (1 << 64) - 1},
    ],
)
def test_unusable_usage_counts_nothing_and_loses_no_text(usage: Any) -> None:
    assert decode_completions(answer(choice(), usage=usage), COMPLETIONS, request()) == (Completion("hi", "stop"),)


def said(finish_reason: str = "stop", **message: Any) -> tuple[Completion, ...]:
    one = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish_reason}
    return decode_completions(answer(one), CHAT, MESSAGES)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"reasoning_content": "hm", "reasoning": "hm"}, "hm"),
        ({"reasoning_content": "hm"}, "hm"),
        ({"reasoning": "hm"}, "hm"),
        ({"reasoning_content": None, "reasoning": "hm"}, "hm"),
        ({"reasoning_content": "", "reasoning": "hm"}, "hm"),
        ({"reasoning_content": ["hm"], "reasoning": {"text": "hm"}}, ""),
        ({"reasoning": 7}, ""),
        ({}, ""),
    ],
)
def test_reasoning_is_kept_beside_the_answer_and_never_loses_it(fields: dict[str, Any], expected: str) -> None:
    assert said(content="yes", **fields) == (Completion("yes", "stop", reasoning=expected),)


def test_a_chat_answer_that_is_all_reasoning_is_an_empty_completion_with_reasoning() -> None:
    assert said("length", content=None, reasoning_content="hm") == (Completion("", "length", reasoning="hm"),)


def test_a_completion_has_no_reasoning_of_its_own() -> None:
    one = {"index": 0, "text": "hi", "finish_reason": "stop", "reasoning": "hm"}
    assert decode_completions(answer(one), CHAT, request()) == (Completion("hi", "stop"),)


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"not json",
        b'{"choices": [',
        b'"text"',
        b"[]",
        b"{}",
        b'{"choices": null}',
        b'{"choices": {}}',
        b'{"error": {"message": "later"}}',
        b'{"choices": [{"text": "\\ud800", "index": 0}]}',
        answer(),
        answer(None),
        answer(["text"]),
        answer(choice(), choice(1)),
        answer(choice(1)),
        answer(choice(-1)),
        answer({"index": "0", "text": "x"}),
        answer({"index": True, "text": "x"}),
        answer({"index": None, "text": "x"}),
        answer(choice(text=None)),
        answer(choice(text=5)),
        answer(choice(text=["x"])),
        answer({"index": 0, "message": {"content": "chat where text was asked"}}),
        answer(choice(finish_reason=1)),
    ],
)
def test_a_broken_answer_is_a_transient_fault_of_a_server_that_answers(broken: bytes) -> None:
    with pytest.raises(TransientError) as caught:
        decode_completions(broken, COMPLETIONS, request())
    assert caught.value.kind == "bad_body"
    assert caught.value.reached_server
    assert "http://host/v1" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "one",
    [
        {},
        {"message": None},
        {"message": "x"},
        {"message": {}},
        {"message": {"content": None}},
        {"message": {"content": [{"type": "text", "text": "x"}]}, "finish_reason": "stop"},
    ],
)
def test_a_broken_chat_choice_is_a_transient_fault(one: dict[str, Any]) -> None:
    with pytest.raises(TransientError) as caught:
        decode_completions(answer({"index": 0} | one), CHAT, request())
    assert caught.value.kind == "bad_body"


def test_choices_that_never_came_are_lost_and_the_others_are_taken() -> None:
    usage = {"prompt_tokens": 7, "completion_tokens": 5}
    decoded = decode_completions(answer(choice(3, "d"), choice(1, "b"), usage=usage), COMPLETIONS, request(n=4))
    assert decoded == (
        Completion("", "missing"),
        Completion("b", "stop", 7, 3),
        Completion("", "missing"),
        Completion("d", "stop", 0, 2),
    )
    assert [one.is_lost for one in decoded] == [True, False, True, False]


def test_an_aborted_sequence_is_lost_and_a_good_one_is_kept() -> None:
    sent = answer(choice(0, "torso", "abort"), choice(1, "b"), usage={"completion_tokens": 5})
    decoded = decode_completions(sent, COMPLETIONS, several("a", "b"))
    assert decoded == (Completion("", "abort"), Completion("b", "stop", 0, 5))


def test_choice_numbers_of_several_prompts_are_consecutive() -> None:
    decoded = decode_completions(
        answer(*(choice(i, str(i)) for i in (3, 0, 2, 1))), COMPLETIONS, several("a", "b", n=2)
    )
    assert [one.text for one in decoded] == ["0", "1", "2", "3"]


def test_a_single_choice_for_several_prompts_asks_for_smaller_requests() -> None:
    """A server that joins the prompts, or takes the first: its one answer is about who knows which."""
    with pytest.raises(PromptTooLong, match="one choice for 3 prompts"):
        decode_completions(answer(choice(0)), COMPLETIONS, several("a", "b", "c"))


@pytest.mark.parametrize("choices", [(), (choice(0), choice(1), choice(2)), (choice(2),), (choice(0), choice(2))])
def test_a_count_or_index_that_was_not_asked_for_is_a_broken_answer(choices: Any) -> None:
    with pytest.raises(TransientError) as caught:
        decode_completions(answer(*choices), COMPLETIONS, request(n=2))
    assert caught.value.kind == "bad_body"


def test_doubled_indexes_are_a_broken_answer() -> None:
    with pytest.raises(TransientError, match="indexes") as caught:
        decode_completions(answer(choice(0), choice(0)), COMPLETIONS, request(n=2))
    assert caught.value.kind == "bad_body"


@pytest.mark.parametrize("reason", ["abort", "error"])
def test_a_sequence_that_the_server_aborted_is_no_completion(reason: str) -> None:
    for asked in (request(), request(n=2), several("a", "b")):
        choices = [choice(i, finish_reason=reason) for i in range(asked.sequences)]
        with pytest.raises(TransientError) as caught:
            decode_completions(answer(*choices), COMPLETIONS, asked)
        assert caught.value.kind == "aborted"


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 5)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["choices", "index", "text", "message", "content", "finish_reason", "usage", "prompt_tokens"]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)
choice_like = st.fixed_dictionaries(
    {},
    optional={
        "index": st.integers(-1, 3) | json_values,
        "text": st.text(max_size=5) | json_values,
        "message": st.fixed_dictionaries({}, optional={"content": st.text(max_size=5) | json_values}) | json_values,
        "finish_reason": st.sampled_from(["stop", "length", "abort", None]) | json_values,
    },
)
answer_like = st.fixed_dictionaries({"choices": st.lists(choice_like, max_size=4)}, optional={"usage": json_values})


@given(json_values | answer_like, st.integers(1, 3), st.sampled_from([COMPLETIONS, CHAT]))
def test_any_json_is_either_the_choices_asked_for_or_a_transient_error(value: Any, n: int, endpoint: Endpoint) -> None:
    try:
        decoded = decode_completions(orjson.dumps(value), endpoint, request(n=n))
    except TransientError:
        return
    assert len(decoded) == n
    assert all(type(one.text) is str and one.completion_tokens >= 0 for one in decoded)


@given(st.binary())
def test_any_bytes_are_either_completions_or_a_transient_error(data: bytes) -> None:
    with pytest.raises(TransientError):
        decode_completions(data, COMPLETIONS, request())
