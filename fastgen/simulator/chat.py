"""The kinds of model that the test server stands in for: chat templates, tokens, and the forms of a chat answer.

Templates are written as data, without Jinja: a piece of text before and after each message. They follow the published
templates of the families that they are named after closely enough to show what those do to messages: a default system
prompt, a date, a role that is refused, reasoning that is dropped from earlier answers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from fastgen.simulator.api import CHARACTERS_PER_TOKEN, BadRequestError, Completion, CompletionRequest, cut

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

NO_TEMPLATE: Final = (
    "As of transformers v4.44, default chat template is no longer allowed, so you must provide a chat template if the "
    "tokenizer does not define one."
)
"""vLLM's message for a model without a chat template."""


class AnswerForm(StrEnum):
    """Where the reasoning of a chat answer is."""

    PLAIN = "plain"  # there is none
    REASONING_CONTENT = "reasoning-content"  # in the message's field of that name (vLLM before 0.12, SGLang, DeepSeek)
    REASONING = "reasoning"  # in that field (vLLM now, Ollama)
    THINK = "think"  # in the content, between <think> and </think>
    THINK_END = "think-end"  # the same, with a <think> that the chat template has written
    UNCLOSED_THINK = "unclosed-think"  # the content begins with <think>, and the tokens end before </think>
    NULL_CONTENT = "null-content"  # the tokens end before the answer; the content is null
    HARMONY = "harmony"  # the content is gpt-oss's raw text, with its channels


class Schemas(StrEnum):
    """What a server does with a JSON schema in ``response_format`` or ``structured_outputs``."""

    IGNORE = "ignore"
    REFUSE = "refuse"
    HONOUR = "honour"


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """A chat template: the text before and after each message.

    ``bos`` begins every sequence. The server adds it to completion prompts, the template to chats. ``preamble`` follows
    it. ``system_note`` is written at the beginning of the system message, also where there is none. ``system`` is
    ``None`` where that role is refused. With ``merges_system`` the system message precedes the first user's text.
    ``writes_blank`` is a tokeniser that writes a blank after ``bos`` that it did not read (SentencePiece).
    """

    user: tuple[str, str]
    assistant: tuple[str, str]
    opening: str
    system: tuple[str, str] | None = None
    default_system: str = ""
    system_note: str = ""
    preamble: str = ""
    bos: str = ""
    merges_system: bool = False
    alternates: bool = False
    writes_blank: bool = False

    def check(self, messages: object) -> None:
        """:raises BadRequestError: the template refuses the messages."""
        if self.system is None or self.alternates:
            self.render(messages)

    def render(self, messages: object, *, opening: bool = True, thinking: bool = True) -> str:
        """Return the prompt that the messages become, with the ``opening`` of the answer.

        Without ``thinking`` the opening has an empty block of reasoning, as Qwen3's.

        :raises BadRequestError: the template refuses the messages.
        """
        conversation = _read(messages)
        system = conversation.pop(0)[1] if conversation[0][0] == "system" else None
        if system is not None and self.system is None:
            raise BadRequestError("System role not supported")
        text, merged = self.bos + self.preamble, ""
        system = self.default_system if system is None else system
        if system or self.system_note:
            before, after = self.system or ("", "")
            merged = f"{before}{self.system_note}{system}{after}"
            if not self.merges_system:
                text, merged = text + merged, ""
        for i, (role, content) in enumerate(conversation):
            if role not in ("user", "assistant") or (self.alternates and role != ("user", "assistant")[i % 2]):
                raise BadRequestError("Conversation roles must alternate user/assistant/user/assistant/...")
            before, after = self.user if role == "user" else self.assistant
            shown = content.strip() if role == "user" else content.rpartition("</think>")[2].strip()
            text += f"{before}{merged}{shown}{after}"
            merged = ""
        if not opening:
            return text
        return text + self.opening + ("" if thinking else "<think>\n\n</think>\n\n")


def _read(messages: object) -> list[tuple[str, str]]:
    """:raises BadRequestError: not a list of messages with a role and a text."""
    if not isinstance(messages, list) or not messages:
        raise BadRequestError("Cannot apply chat template to an empty conversation. Provide at least one message.")
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise BadRequestError("every message needs a role and a content")
    return [(str(message.get("role")), message["content"]) for message in messages]


_CHATML: Final = ChatFormat(
    user=("<|im_start|>user\n", "<|im_end|>\n"),
    assistant=("<|im_start|>assistant\n", "<|im_end|>\n"),
    opening="<|im_start|>assistant\n",
    system=("<|im_start|>system\n", "<|im_end|>\n"),
)
_GEMMA: Final = ChatFormat(
    user=("<start_of_turn>user\n", "<end_of_turn>\n"),
    assistant=("<start_of_turn>model\n", "<end_of_turn>\n"),
    opening="<start_of_turn>model\n",
    bos="<bos>",
    alternates=True,
)
TEMPLATES: Final[Mapping[str, ChatFormat]] = {
    "chatml": _CHATML,
    "qwen2.5": replace(_CHATML, default_system="You are a helpful assistant of a test."),
    "llama3": ChatFormat(
        user=("<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>"),
        assistant=("<|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>"),
        opening="<|start_header_id|>assistant<|end_header_id|>\n\n",
        system=("<|start_header_id|>system<|end_header_id|>\n\n", "<|eot_id|>"),
        system_note="Today Date: 26 Jul 2024\n\n",
        bos="<|begin_of_text|>",
    ),
    "gemma2": _GEMMA,
    "gemma3": replace(_GEMMA, system=("", "\n\n"), merges_system=True),
    "mistral": ChatFormat(
        user=("[INST] ", " [/INST]"),
        assistant=(" ", "</s>"),
        opening="",
        system=("", "\n\n"),
        bos="<s>",
        merges_system=True,
        alternates=True,
        writes_blank=True,
    ),
    "harmony": ChatFormat(
        user=("<|start|>user<|message|>", "<|end|>"),
        assistant=("<|start|>assistant<|channel|>final<|message|>", "<|end|>"),
        opening="<|start|>assistant",
        system=("<|start|>developer<|message|># Instructions\n\n", "<|end|>"),
        preamble="<|start|>system<|message|>Reasoning: medium<|end|>",
    ),
}
"""By name, for ``--template``."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What kind of model a server has, and which of vLLM's features the server has.

    ``template`` is ``None`` for a base model: chats are refused. ``form`` is that of a chat answer.
    ``switches_thinking`` says whether ``enable_thinking`` and ``reasoning_effort`` have an effect. A server that
    ``ignores_n`` returns one choice. Without ``tokenizes`` there is no ``/tokenize`` and no ``/detokenize``.
    """

    template: ChatFormat | None = _CHATML
    form: AnswerForm = AnswerForm.PLAIN
    switches_thinking: bool = True
    ignores_n: bool = False
    schemas: Schemas = Schemas.IGNORE
    tokenizes: bool = True

    def complete(
        self, asked: CompletionRequest, answer: str | None, think: Callable[[int], str], room_tokens: int
    ) -> Completion:
        """Return a chat completion whose answer is ``answer``, as it arrives from a server of this kind.

        ``think(sentences)`` writes the reasoning. Stop strings and the token limit count for all that the model writes,
        reasoning included. An ``answer`` of ``None`` never comes, as where reasoning takes all tokens.
        """
        form = self.form
        effort = asked.effort if self.switches_thinking else "medium"
        if answer is None or form is AnswerForm.PLAIN or (effort == "none" and form is not AnswerForm.HARMONY):
            return cut(answer, asked, room_tokens)
        reasoning = think(_SENTENCES.get(effort, 4))
        begin, end = _MARKS.get(form, ("<think>\n", "\n</think>\n\n"))
        if form in (AnswerForm.UNCLOSED_THINK, AnswerForm.NULL_CONTENT):
            written = replace(cut(begin + reasoning, asked, room_tokens), finish_reason="length")
            written = replace(written, tokens=min(asked.max_tokens, room_tokens))
        else:
            written = cut(f"{begin}{reasoning}{end}{answer}", asked, room_tokens)
        return _received(written, _FIELDS.get(form))


_SENTENCES: Final = {"none": 1, "minimal": 1, "low": 1, "medium": 4, "high": 10}
"""Sentences of reasoning by effort."""
_MARKS: Final = {
    AnswerForm.THINK_END: ("", "\n</think>\n\n"),
    AnswerForm.HARMONY: (
        "<|channel|>analysis<|message|>",
        "<|end|><|start|>assistant<|channel|>final<|message|>",
    ),
}
"""What stands around the reasoning, where that is not a block of thinking."""
_FIELDS: Final = {
    AnswerForm.REASONING_CONTENT: "reasoning_content",
    AnswerForm.NULL_CONTENT: "reasoning_content",
    AnswerForm.REASONING: "reasoning",
}


def _received(written: Completion, name: str | None) -> Completion:
    """Return the completion with its block of thinking moved to the field ``name``, if any."""
    if name is None or written.text is None:
        return written
    reasoning, closed, answer = written.text.removeprefix("<think>\n").partition("</think>")
    return replace(written, text=answer.lstrip("\n") if closed else None, reasoning=(name, reasoning.rstrip("\n")))


# -- tokens ------------------------------------------------------------------------------------------------------------

_PIECES: Final = re.compile(
    rf"<[^<>\s]{{1,40}}>|\[/?INST\]|(?:(?!<[^<>\s]{{1,40}}>|\[/?INST\]).){{1,{CHARACTERS_PER_TOKEN}}}", re.DOTALL
)
"""A special token, or a few characters."""


@dataclass(slots=True)
class Tokenizer:
    """Texts as tokens and back. A number means what it meant when this tokeniser first met that piece of text."""

    bos: str = ""
    writes_blank: bool = False
    _pieces: list[str] = field(default_factory=list)
    _numbers: dict[str, int] = field(default_factory=dict)

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Return the tokens of ``text``, after ``bos`` if ``special``."""
        pieces = ([self.bos] if special and self.bos else []) + _PIECES.findall(text)
        for piece in pieces:
            if piece not in self._numbers:
                self._numbers[piece] = len(self._pieces)
                self._pieces.append(piece)
        return [self._numbers[piece] for piece in pieces]

    def decode(self, tokens: Iterable[object]) -> str:
        """Return the text of tokens.

        :raises BadRequestError: one of them is unknown.
        """
        known: Sequence[str] = self._pieces
        pieces = []
        for token in tokens:
            if type(token) is not int or not 0 <= token < len(known):
                raise BadRequestError(f"token {token!r:.40} is not in the vocabulary")
            pieces.append(known[token])
        if self.writes_blank and len(pieces) > 1 and pieces[0] == self.bos:
            pieces.insert(1, " ")
        return "".join(pieces)


def tokens_asked(asked: Mapping[str, Any], model: ServedModel, tokenizer: Tokenizer) -> list[int]:
    """Return the tokens that a body of ``/tokenize`` asks for: those of ``prompt``, or of ``messages``.

    :raises BadRequestError: neither is there, or the model has no chat template, or its template refuses them.
    """
    if "messages" not in asked:
        if not isinstance(asked.get("prompt"), str):
            raise BadRequestError("prompt must be a string")
        return tokenizer.encode(asked["prompt"], special=asked.get("add_special_tokens", True) is not False)
    if model.template is None:
        raise BadRequestError(NO_TEMPLATE)
    kwargs = asked.get("chat_template_kwargs") or {}
    text = model.template.render(
        asked["messages"],
        opening=asked.get("add_generation_prompt", True) is not False,
        thinking=not isinstance(kwargs, dict) or kwargs.get("enable_thinking", True) is not False,
    )
    return tokenizer.encode(text, special=asked.get("add_special_tokens", False) is True)
