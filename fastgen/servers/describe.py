"""What a server and its model are: asked once, before a run.

An OpenAI-compatible API does not say whether its model is a chat model, nor what its chat template is. vLLM tells both
through ``/tokenize`` (messages in, tokens out) and ``/detokenize``, llama.cpp's server through ``/apply-template``.
`describe` asks for the renderings of three short conversations of unlikely words. A server without these routes is
normal: then facts are missing, with the reason, and nothing fails.

The renderings are texts for ``/v1/completions``. vLLM puts the token that begins a sequence before each such prompt,
and many templates write it too. A rendering is therefore tokenised again as a completion prompt. Where that doubles its
first token, the token's text is removed, so that a model sees it once. Some tokenisers add a blank when they write: it
is dropped where only that gives the tokens of the chat.

A server's answers are data: texts and numbers that are not of the expected kind count as missing.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import orjson

from fastgen.errors import FastgenError
from fastgen.text import printable
from fastgen.types import MOST_TOKENS, Message

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastgen.methods.chat_template import ChatTemplate
    from fastgen.servers.endpoint import Api
    from fastgen.servers.openai import OpenAIBackend
    from fastgen.servers.protocol import HttpAnswer

REMEDY: Final = "give the text that precedes a question with --pre-query TEXT"
TINY_CHAT_S: Final = 60.0
"""Seconds that a chat request of one token may take. A server's first request may compile."""

_MARKS: Final = ("Quorvantel", "Zimbrelode", "Fendaquist", "Yorblatine")
"""System message, user's text, answer, second user's text. Nothing else contains these words."""
_SYSTEM, _USER, _ASSISTANT, _NEXT_USER = (
    Message(role, text) for role, text in zip(("system", "user", "assistant", "user"), _MARKS, strict=True)
)
_NO_TEMPLATE: Final = re.compile(
    r"must provide a chat template|chat_template is not set|no chat template|without a chat template"
    r"|(?:not|n't) (?:have|define|support)\w* (?:an? |any )?chat template|default chat template is no longer",
    re.IGNORECASE,
)
"""Words of transformers, vLLM and others for a model without one. Templates that refuse a conversation say others."""
_NAMES_A_BASE: Final = re.compile(r"(?:^|[-_.:])(?:base|pretrained)(?=$|[-_.:])|gemma.*-pt(?=$|[-_.:])", re.IGNORECASE)
_NAMES_A_CHAT: Final = re.compile(r"(?:^|[-_.:])(?:instruct|chat|it|sft|dpo)(?=$|[-_.:])", re.IGNORECASE)
_LONGEST_NAME: Final = 200
_NO_ROUTE: Final = (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED, HTTPStatus.NOT_IMPLEMENTED)

_Render = Callable[[Sequence[Message]], Awaitable[str]]
ReadTemplate = Callable[[str, str | None, str | None, Sequence[str]], "ChatTemplate"]
"""What makes a template of three renderings: `ChatTemplate.from_renderings`. The caller passes it, because the servers
know nothing of methods."""


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What could be learned of a server and its model.

    ``is_chat`` says whether the model has a chat template, ``None`` where the server does not tell. ``context_tokens``
    is the most that a prompt and its completion may have together. ``root`` is the path or name that the server loaded
    the model from, ``owned_by`` who serves it (``"vllm"``, ``"llamacpp"``); both empty where it does not say.
    ``template`` is ``None`` where it could not be had. ``reason`` is then one line that says why, with the remedy.
    """

    model: str
    is_chat: bool | None = None
    context_tokens: int | None = None
    template: ChatTemplate | None = None
    reason: str = ""
    root: str = ""
    owned_by: str = ""


async def describe(backend: OpenAIBackend, read_template: ReadTemplate) -> ServerFacts:
    """Ask a server what it and its model are. Never raises for what the server does, or does not do.

    ``read_template`` is `ChatTemplate.from_renderings`. The template is that of requests as the endpoint sends them:
    ``chat_template_kwargs`` of its ``extra_body`` apply.
    """
    try:
        card = await _card(backend)
    except FastgenError as error:
        return ServerFacts(backend.endpoint.model, reason=_because(f"the server does not answer ({error})"))
    model = backend.endpoint.model or _text(card, "id")
    context = await _context_of(backend, card)
    template, reason = None, ""
    is_chat: bool | None = None
    try:
        render, asked = await _first_rendering(backend, model)
        is_chat = True
        template = read_template(
            asked,
            await _unless_refused(render, (_USER, _ASSISTANT, _NEXT_USER)),
            await _unless_refused(render, (_SYSTEM, _USER)),
            _MARKS,
        )
    except _NoTemplateError:
        is_chat, reason = False, f"{_shown(model)} has no chat template; {REMEDY}"
    except (FastgenError, ValueError) as error:
        reason = _because(str(error))
    root, owned_by = _text(card, "root"), _text(card, "owned_by")
    return ServerFacts(model, is_chat, context, template, reason, root, owned_by)


async def context_tokens(backend: OpenAIBackend) -> int | None:
    """Ask a server for the most tokens of a prompt and its completion. ``None`` where it does not say."""
    try:
        return await _context_of(backend, await _card(backend))
    except FastgenError:
        return None


async def _context_of(backend: OpenAIBackend, card: Mapping[str, Any]) -> int | None:
    return _tokens(card.get("max_model_len")) or await _llama_cpp_context(backend)


async def choose_api(facts: ServerFacts, backend: OpenAIBackend) -> tuple[Api, str]:
    """Return what ``--api auto`` means for a server, and the sentence that says so.

    A model with a chat template is asked through chat, one without through completions. So is a model whose name says
    that it is a base model: several base models carry the template of their chat siblings. Where the server does not
    tell, a chat request of one token does.
    """
    name = _shown(facts.model)
    if facts.is_chat is False:
        return "completions", f"{name} has no chat template: --api completions"
    if names_a_base_model(facts.model):
        return "completions", f"{name} is a base model by its name: --api completions"
    if facts.is_chat:
        return "chat", f"{name} has a chat template: --api chat"
    return await _try_chat(facts, backend)


async def _try_chat(facts: ServerFacts, backend: OpenAIBackend) -> tuple[Api, str]:
    """Ask for a chat answer of one token."""
    name = _shown(facts.model)
    endpoint = backend.endpoint
    tiny = {"model": facts.model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    body = {key: value for key, value in (tiny | dict(endpoint.extra_body)).items() if value is not None}
    try:
        answer = await backend.ask(f"{endpoint.display_url}/chat/completions", body, timeout_s=TINY_CHAT_S)
    except FastgenError as error:
        return "completions", f"{name} did not answer a chat request ({error}): --api completions"
    said = f"{answer.status}: {printable(answer.detail(endpoint.redact))}"
    if answer.status == HTTPStatus.OK:
        return "chat", f"{name} answers chat requests: --api chat"
    if _is_client_error(answer) and not _says_no_chat(answer):
        return "chat", f"{name} has a chat route, which refused a request of one token ({said}): --api chat"
    return "completions", f"{name} takes no chat requests ({said}): --api completions"


def names_a_base_model(model: str) -> bool:
    """Whether a model's name has a part that marks base models: ``Qwen3-8B-Base``, ``gemma-3-4b-pt``."""
    name = model.rstrip("/").rpartition("/")[2]
    return _NAMES_A_BASE.search(name) is not None and _NAMES_A_CHAT.search(name) is None


def _is_client_error(answer: HttpAnswer) -> bool:
    """Whether the route exists and the request was refused for what it says."""
    return answer.status in (
        HTTPStatus.BAD_REQUEST,
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        HTTPStatus.UNPROCESSABLE_ENTITY,
    )


def _says_no_chat(answer: HttpAnswer) -> bool:
    return answer.status in _NO_ROUTE or _NO_TEMPLATE.search(answer.text()) is not None


# -- renderings --------------------------------------------------------------------------------------------------------


class _NoTemplateError(Exception):
    """The model has no chat template."""


class _NoRouteError(ValueError):
    """The server has no such route, or one that takes something else."""


async def _first_rendering(backend: OpenAIBackend, model: str) -> tuple[_Render, str]:
    """Return the function that renders messages at this server, and its rendering of the first question.

    :raises _NoTemplateError: the model has no chat template.
    :raises ValueError: the server does not render messages.
    """
    try:
        vllm = _Vllm(backend, model)
        return vllm.render, await vllm.begin((_USER,))
    except _NoRouteError:
        pass
    try:
        render = partial(_llama_cpp_rendering, backend)
        return render, await render((_USER,))
    except _NoRouteError:
        raise ValueError("the server has neither /tokenize for messages nor /apply-template") from None


async def _unless_refused(render: _Render, messages: Sequence[Message]) -> str | None:
    """Return the rendering, ``None`` where the template refuses such a conversation (Gemma 2: a system message)."""
    try:
        return await render(messages)
    except (_NoTemplateError, ValueError):
        return None


class _Vllm:
    """vLLM's ``/tokenize`` and ``/detokenize``: renders messages as completion prompts.

    `begin` renders the first conversation, and finds out what to drop from the beginning of all.
    """

    def __init__(self, backend: OpenAIBackend, model: str) -> None:
        self._backend = backend
        self._model = model
        self._dropped = ""
        self._drops_blanks = False

    async def begin(self, messages: Sequence[Message]) -> str:
        """Render the first conversation.

        :raises _NoRouteError: the server has no such routes.
        :raises _NoTemplateError: there is no chat template.
        """
        tokens = await self._tokens_of_chat(messages)
        text = await self._text_of(tokens)
        again = await self._tokens_of(text)
        if again[:2] == tokens[:1] * 2:
            self._dropped = await self._text_of(tokens[:1])
            text = text.removeprefix(self._dropped)
            again = await self._tokens_of(text)
        if again != tokens and text != text.lstrip() and await self._tokens_of(text.lstrip()) == tokens:
            self._drops_blanks = True
        return self._trimmed(text)

    async def render(self, messages: Sequence[Message]) -> str:
        """Render another conversation. Raises as `begin` does."""
        text = await self._text_of(await self._tokens_of_chat(messages))
        return self._trimmed(text.removeprefix(self._dropped))

    def _trimmed(self, text: str) -> str:
        return text.lstrip() if self._drops_blanks else text

    async def _tokens_of_chat(self, messages: Sequence[Message]) -> list[int]:
        asked = _messages(self._backend, messages) | {"add_generation_prompt": True}
        return _read_tokens(await self._post("tokenize", asked))

    async def _tokens_of(self, prompt: str) -> list[int]:
        """The tokens of a completion prompt, with those that the server adds."""
        return _read_tokens(await self._post("tokenize", {"prompt": prompt}))

    async def _text_of(self, tokens: Sequence[int]) -> str:
        text = (await self._post("detokenize", {"tokens": tokens})).get("prompt")
        if not isinstance(text, str):
            raise _NoRouteError("/detokenize answers without a prompt")
        return text

    async def _post(self, route: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        return await _post(self._backend, route, {"model": self._model, **body})


def _read_tokens(answer: Mapping[str, Any]) -> list[int]:
    """:raises _NoRouteError: no tokens. llama.cpp's ``/tokenize`` returns none for messages."""
    tokens = answer.get("tokens")
    if not isinstance(tokens, list) or not tokens or not all(type(token) is int for token in tokens):
        raise _NoRouteError("/tokenize answers without tokens")
    return tokens


async def _llama_cpp_rendering(backend: OpenAIBackend, messages: Sequence[Message]) -> str:
    """llama.cpp's ``/apply-template``. Its server tokenises chats and completion prompts alike, so nothing is dropped.

    :raises _NoRouteError: the server has no such route.
    :raises _NoTemplateError: there is no chat template.
    """
    prompt = (await _post(backend, "apply-template", _messages(backend, messages))).get("prompt")
    if not isinstance(prompt, str):
        raise _NoRouteError("/apply-template answers without a prompt")
    return prompt


async def _llama_cpp_context(backend: OpenAIBackend) -> int | None:
    """The context of one slot of llama.cpp's server, which its ``/props`` tells. ``None`` where it does not."""
    try:
        answer = await backend.ask(f"{backend.endpoint.root_url}/props")
        settings = _object(answer).get("default_generation_settings")
    except (FastgenError, ValueError):
        return None
    return _tokens(settings.get("n_ctx")) if isinstance(settings, dict) else None


def _messages(backend: OpenAIBackend, messages: Sequence[Message]) -> dict[str, Any]:
    """The fields of a chat request that shape its prompt."""
    body: dict[str, Any] = {"messages": [{"role": one.role, "content": one.content} for one in messages]}
    given = backend.endpoint.extra_body.get("chat_template_kwargs")
    return body | ({"chat_template_kwargs": given} if given else {})


# -- small calls -------------------------------------------------------------------------------------------------------


async def _card(backend: OpenAIBackend) -> Mapping[str, Any]:
    """The entry of the endpoint's model, or of the only model, in ``/v1/models``. Empty where there is none.

    :raises FastgenError: the server does not answer.
    """
    answer = await backend.ask(f"{backend.endpoint.display_url}/models")
    try:
        entries = _object(answer).get("data")
    except ValueError:
        return {}
    cards = [card for card in entries if isinstance(card, dict)] if isinstance(entries, list) else []
    named = [card for card in cards if card.get("id") == backend.endpoint.model]
    return next(iter(named), cards[0] if len(cards) == 1 and not backend.endpoint.model else {})


async def _post(backend: OpenAIBackend, route: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
    """Post to a route beside ``/v1``, and return its JSON object.

    :raises _NoTemplateError: the server says that there is no chat template.
    :raises _NoRouteError: there is no such route, or it takes another body.
    :raises ValueError: the server refuses the body.
    :raises FastgenError: it does not answer.
    """
    answer = await backend.ask(f"{backend.endpoint.root_url}/{route}", body)
    if answer.status == HTTPStatus.OK:
        return _object(answer)
    said = f"/{route} answers {answer.status}: {printable(answer.detail(backend.endpoint.redact))}"
    if answer.status == HTTPStatus.BAD_REQUEST and _NO_TEMPLATE.search(answer.text()):
        raise _NoTemplateError(said)
    if answer.status in (*_NO_ROUTE, HTTPStatus.UNPROCESSABLE_ENTITY):
        raise _NoRouteError(said)
    raise ValueError(said)


def _object(answer: HttpAnswer) -> Mapping[str, Any]:
    """:raises _NoRouteError: the body is no JSON object, as that of a proxy's page."""
    try:
        value = orjson.loads(answer.body)
    except orjson.JSONDecodeError:
        value = None
    if not isinstance(value, dict):
        raise _NoRouteError("an answer that is no JSON object")
    return value


def _text(card: Mapping[str, Any], name: str) -> str:
    value = card.get(name)
    return value if isinstance(value, str) else ""


def _tokens(value: object) -> int | None:
    return value if type(value) is int and 0 < value <= MOST_TOKENS else None


def _shown(model: str) -> str:
    return printable(model)[:_LONGEST_NAME] or "the model"


def _because(reason: str) -> str:
    return f"the chat template is unknown: {reason}; {REMEDY}"
