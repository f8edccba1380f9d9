"""A model's chat template as literal text, so that a prompt can end in the middle of a conversation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """The text that a chat template puts around messages.

    ``before_system`` and ``system_to_user`` are ``None`` where the template takes no system message.
    """

    before_user: str
    user_to_assistant: str
    assistant_to_user: str
    before_system: str | None = None
    system_to_user: str | None = None

    def pre_query(self, turns: Sequence[tuple[str, str]] = (), system: str = "") -> str:
        """The prompt of a conversation, cut just before the user's next text."""
        begin = self.before_user
        if system and self.before_system is not None and self.system_to_user is not None:
            begin = self.before_system + system + self.system_to_user
        return begin + "".join(f"{u}{self.user_to_assistant}{a}{self.assistant_to_user}" for u, a in turns)

    @property
    def stop(self) -> tuple[str, ...]:
        """The texts that end a user's turn."""
        return (self.user_to_assistant.strip(),) if self.user_to_assistant.strip() else ()
