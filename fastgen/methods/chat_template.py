"""A chat template as plain text: what a model expects before, between and after the texts of a conversation.

Chat servers put messages into a template before the model sees them. Magpie (arXiv:2406.08464) needs the template
itself: a completion prompt that ends where a user's text begins makes an instruct model write that text.

`ChatTemplate` holds the template's fixed pieces. `ChatTemplate.from_renderings` finds them in conversations that a
server has rendered.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Final, Self

from fastgen.text import without_template_marks

if TYPE_CHECKING:
    from collections.abc import Sequence

_MARK: Final = re.compile(r"<[^<>\s]{1,40}>|\[/?[A-Z_]{1,20}\]")
"""A special token as templates write it: ``<|im_end|>``, ``</s>``, ``[/INST]``."""
_ENDS_OF_TURN: Final = (
    ("<|im_start|>", "<|im_end|>"),
    ("<|start_header_id|>", "<|eot_id|>"),
    ("<start_of_turn>", "<end_of_turn>"),
    ("<|start|>", "<|end|>"),
    ("[INST]", "[/INST]"),
)
"""What opens a turn, and what ends the same turn: ChatML, Llama 3, Gemma, harmony, Mistral."""
_LONGEST: Final = 20_000
"""Characters of a piece. The longest templates in use, with lists of tools, have a few thousand."""


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """The fixed pieces of a chat template.

    The pieces are texts for ``/v1/completions``. What a server itself puts before every completion prompt (the token
    that begins a sequence, ``<s>`` or ``<|begin_of_text|>``) is not part of them, or it would be there twice. Whoever
    renders the conversations removes it (`fastgen.servers.describe`).

    A template may write a default system prompt or the date into ``before_user``. A run that is resumed on another day
    would then see another template, so a run stores its template (`to_json`) and resumes with that.
    """

    before_user: str
    """From the beginning of the prompt to the first user's text."""
    user_to_assistant: str = ""
    """Between a user's text and the assistant's answer, in an earlier turn."""
    assistant_to_user: str = ""
    """Between an answer and the next user's text, with the mark that ends the answer. Empty: single turns only."""
    before_system: str | None = None
    """From the beginning of the prompt to the system message, ``None`` where the template takes none."""
    system_to_user: str | None = None
    """Between the system message and the first user's text, ``None`` where the template takes none."""

    @classmethod
    def from_pre_query(cls, text: str) -> Self:
        r"""Return the template that ``--pre-query`` describes: single turns, without a system message.

        The mark that ends a turn is known for the usual families (ChatML, Llama 3, Gemma, harmony, Mistral).

        :raises ValueError: the text is blank or too long.
        """
        if not text.strip() or len(text) > _LONGEST:
            raise ValueError(f"the text is blank or longer than {_LONGEST} characters; give what precedes a question")
        opened = max(_ENDS_OF_TURN, key=lambda pair: text.rfind(pair[0]))
        return cls(text, user_to_assistant=opened[1] if opened[0] in text else "")

    @classmethod
    def from_renderings(cls, asked: str, talked: str | None, instructed: str | None, marks: Sequence[str]) -> Self:
        """Return the template in which a server has rendered three conversations.

        ``marks`` are the texts of the messages: system, user, assistant, second user. ``asked`` is the rendering of
        [user], with the opening of the answer. ``talked`` is that of [user, assistant, second user], ``instructed``
        that of [system, user]. Either may be ``None`` where the server refused it, and is left out where it cannot be
        used: the template then has single turns only, or takes no system message.

        :raises ValueError: the user's text is not in ``asked``, or not once; the message says so in one line.
        """
        system, user, assistant, next_user = marks
        pieces = _between(asked, (user,))
        if pieces is None:
            raise ValueError("the chat template changes or repeats the user's text")
        before_user, user_to_assistant = pieces
        assistant_to_user = ""
        if talked is not None and (turns := _between(talked, (user, assistant, next_user))) is not None:
            _, user_to_assistant, assistant_to_user, _ = turns
        before_system = system_to_user = None
        if instructed is not None and (parts := _between(instructed, (system, user))) is not None:
            before_system, system_to_user, _ = parts
        return cls(before_user, user_to_assistant, assistant_to_user, before_system, system_to_user)

    def to_json(self) -> dict[str, str | None]:
        """Return the pieces by name, as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> Self:  # noqa: ANN401 - any JSON value
        """Return the template that `to_json` wrote.

        :raises ValueError: it is not such a value.
        """
        names = [field.name for field in fields(cls)]
        if not isinstance(value, dict) or set(value) != set(names):
            raise ValueError(f"not a chat template: an object with {', '.join(names)} is needed")
        for name in names:
            is_optional = name in ("before_system", "system_to_user")
            if not (isinstance(value[name], str) or (is_optional and value[name] is None)):
                raise ValueError(f"not a chat template: {name} has to be a text")
        return cls(**value)

    @property
    def takes_turns(self) -> bool:
        """Whether `pre_query` can follow earlier turns."""
        return bool(self.user_to_assistant and self.assistant_to_user)

    @property
    def takes_system(self) -> bool:
        """Whether `pre_query` can begin with a system message."""
        return self.before_system is not None and self.system_to_user is not None

    def pre_query(self, turns: Sequence[tuple[str, str]] = (), system: str = "") -> str:
        """Return the prompt of a conversation, cut where the next user's text begins.

        ``turns`` are earlier (user's text, answer) pairs. Template marks in any of these texts are broken by a space,
        because a completion prompt would read them as the template's own.

        :raises ValueError: the template takes no system message, or no earlier turns.
        """
        if system and not self.takes_system:
            raise ValueError("the model's chat template takes no system message")
        if turns and not self.takes_turns:
            raise ValueError("only the beginning of the model's chat template is known, which is enough for one turn")
        begin = self.before_user
        if system:
            begin = f"{self.before_system}{without_template_marks(system)}{self.system_to_user}"
        return begin + "".join(
            f"{without_template_marks(user)}{self.user_to_assistant}"
            f"{without_template_marks(answer)}{self.assistant_to_user}"
            for user, answer in turns
        )

    @property
    def stop(self) -> tuple[str, ...]:
        """The text that ends a user's turn, for ``stop``: at most one, none where it is unknown.

        It is the first special token of what follows a user's text, or else the first line of that which is not blank.
        A token that also ends the sequence, as in most families, stops the model by itself. Where it does not
        (harmony's ``<|end|>``), vLLM compares it with ``stop`` only under ``"skip_special_tokens": false``.
        """
        following = self.user_to_assistant.lstrip()
        if not following:
            return ()
        mark = _MARK.match(following)
        return (mark[0] if mark else following.split("\n", 1)[0].rstrip(),)


def _between(text: str, marks: Sequence[str]) -> list[str] | None:
    """Return the pieces of ``text`` around ``marks``, ``None`` unless each mark is there once, in order."""
    pieces: list[str] = []
    rest = text
    for mark in marks:
        if text.count(mark) != 1:
            return None
        piece, found, rest = rest.partition(mark)
        if not found or len(piece) > _LONGEST:
            return None
        pieces.append(piece)
    return [*pieces, rest]
