"""Magpie: a chat model writes the user's message itself (Xu et al., 2024, arXiv 2406.08464).

A conversation is cut where the user's text begins (`ChatTemplate.pre_query`). A model that was trained on conversations
completes it with a message as users write them. An ordinary chat request then answers that message. There are no seeds
and no demonstrations, so every prompt is the same, apart from a topic or a persona in the system message.

**Conversations.** With ``turns`` above 1 the conversation so far is cut before the user's next message, and so on. The
steps are ``answer``, ``follow_up_2``, ``answer_2``, ``follow_up_3`` ... A follow-up that cannot be used ends the
conversation, which keeps the turns that it has.

**System messages** steer what the user asks: a topic, a persona, and in later turns that the conversation continues.
Answers are asked for without any, as the released code does. What is trained on the data needs none then.

**Reading a message.** The model may go on after the message and answer itself, or speak as the assistant from the
start. `_read_message` looks for marks of all common templates, not for those of the model alone: a run that is read
again, where no template is known, must give the same. It never raises and takes time linear in the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from fastgen.errors import InputError
from fastgen.methods.base import (
    CREATION,
    Answered,
    Ask,
    Continued,
    Creation,
    Draw,
    Drawn,
    Item,
    Method,
    Rejected,
    Setup,
    Step,
    StepOutcome,
    Subject,
)
from fastgen.methods.chat_template import ChatTemplate
from fastgen.text import COLON, NOWHERE, is_cut, trim, whole_answer, without_template_marks
from fastgen.types import Completion, Message, Request, Sampling, Span

# The paper samples instructions at temperatures of 1 to 1.25 and a top_p of 0.99 to 1 (its table 7) and answers
# greedily. A message of 1024 tokens has, in most languages, more characters than the rules of a run allow. The paper's
# answers take 390 to 580 tokens on average, with deviations of up to 416 (table 4).
_MESSAGE: Final = Sampling(1.0, 1.0, 1024)
_ANSWER: Final = Sampling(0.0, 1.0, 2048)
_MOST_STOPS: Final = 4  # that a server takes


def build(setup: Setup) -> Method:
    """Return the method. ``turns`` (default 1) is its only option.

    :raises InputError: there are topics or personas, and the model's chat template takes no system message; or several
        turns, and only its beginning is known.
    """
    template = setup.template
    message = replace(_MESSAGE, stop=_stops(template))
    turns = setup.number("turns", 1, least=1, most=8)
    if turns > 1 and template is not None and not template.takes_turns:
        raise InputError(
            f"--turns {turns}: only the beginning of the model's chat template is known, which is enough for one turn; "
            "leave --turns out, or use a server that tells the template through /tokenize"
        )
    steered = setup.context.topics or setup.context.personas
    if steered and template is not None and (template.before_system is None or template.system_to_user is None):
        raise InputError(
            "--topics, --personas: this model's chat template takes no system message, which is where magpie puts "
            "them; leave them out, or use another model"
        )

    def ask(draw: Draw) -> Ask:
        drawn = setup.context.draw(draw)
        return Ask(_known(template).pre_query(system=_system(drawn)), drawn=drawn or None)

    def ask_next(subject: Subject) -> Ask:
        known = _known(template)
        system = _system(subject.drawn, continues=True) if known.takes_system else ""
        return Ask(known.pre_query([(turn.user, turn.assistant) for turn in subject.turns], system))

    def read_next(completion: Completion, subject: Subject) -> StepOutcome:
        return _read_follow_up(completion, subject, setup.check)

    steps = [_answer_step(1)]
    for turn in range(2, turns + 1):
        follow_up = Step(
            name=f"follow_up_{turn}",
            sampling=message,
            ask=ask_next,
            read=read_next,
            is_optional=True,
            role=CREATION,
        )
        steps += (follow_up, _answer_step(turn))
    creation = Creation(
        sampling=message,
        ask=ask,
        read=_read_instruction,
        samples=setup.samples,
    )
    return Method(name="magpie", creation=creation, steps=tuple(steps), check=setup.check, seed=setup.seed)


def _known(template: ChatTemplate | None) -> ChatTemplate:
    """:raises ValueError: there is none. A caller that asks has got one from the server or the user."""
    if template is None:
        raise ValueError("magpie: no chat template; a method that was built without one can only read")
    return template


def _answer_step(turn: int) -> Step:
    return Step(
        name="answer" if turn == 1 else f"answer_{turn}",
        sampling=_ANSWER,
        ask=_ask_answer,
        read=_read_answer,
        is_answer=True,
        is_optional=turn > 1,
        role="answer",
    )


def _stops(template: ChatTemplate | None) -> tuple[str, ...]:
    """The texts that end a user's message: each mark of the template by itself, then what has none.

    Most servers leave these marks out of the text and stop at the token. Others write them. A model that does not write
    the first of them may still write the next.
    """
    if template is None:
        return ()
    marks = dict.fromkeys(mark[0] for mark in _MARK.finditer(template.user_to_assistant + template.before_user))
    plain = [stop for stop in template.stop if not any(mark in stop for mark in marks)]
    return (*marks, *plain)[:_MOST_STOPS]


# -- prompts -----------------------------------------------------------------------------------------------------------


def _system(drawn: Drawn, *, continues: bool = False) -> str:
    """The system message for a user's message. Empty where nothing was drawn and the conversation begins."""
    parts = []
    if topic := _line(drawn.get("topic", "")):
        parts.append(
            f"You are an assistant for questions and tasks on one subject: {topic}. Users come with everything that "
            "belongs to it, from simple questions to hard problems."
        )
    if persona := _line(drawn.get("persona", "")):
        parts.append(f"This is the user: {persona}. The user asks for help with their own work, life and interests.")
    if continues:
        parts.append(
            "This conversation has several turns. After each of your answers the user asks a further question, or sets "
            "a further task, that builds on what was said before."
        )
    return "\n\n".join(parts)


def _line(text: str) -> str:
    return without_template_marks(" ".join(text.split()).rstrip("."))


def _ask_answer(subject: Subject) -> Ask:
    """Ask for the answer to the user's last message, after the conversation so far."""
    spoken = [message for turn in subject.turns for message in (("user", turn.user), ("assistant", turn.assistant))]
    messages = (*spoken, ("user", subject.question))
    return Ask(tuple(Message(role, without_template_marks(text)) for role, text in messages))


# -- what the model wrote as the user ----------------------------------------------------------------------------------

_BAR: Final = "[|\uff5c]"
_MARK: Final = re.compile(
    rf"<{_BAR}[\w\u2581]{{1,40}}{_BAR}>|</s>|\[/?(?:INST|SYSTEM_PROMPT)\]|<</?SYS>>|<(?:start|end)_of_turn>"
    r"|<(?:bos|eos|pad|unk)>|<extra_id_\d>"
)
"""A mark of a chat template: ChatML, Llama, Mistral, Gemma, Phi, Cohere, DeepSeek, harmony, Nemotron."""
_HALF_MARK: Final = re.compile(rf"<{_BAR}[\w\u2581]{{0,40}}{_BAR}?\Z")
_LONGEST_MARK: Final = 44

_BOLD: Final = r"(?:\*\*|__)?"
_OPENING: Final = re.compile(
    rf"""(?:\s*+(?:
        <s> | <bos> | <{_BAR}(?:begin_of_text|startoftext|begin\u2581of\u2581sentence){_BAR}> | \[INST\]
        | <{_BAR}(?:user|begin_of_user|USER_TOKEN){_BAR}>
        | (?:<\|im_start\|>|<\|start_header_id\|>|<\|header_start\|>|<start_of_turn>|<\|start\|>)user\b
          (?:<\|(?:end_header_id|header_end|message)\|>)?
        | user[ \t]*+(?=\n)
        | (?:\#{{1,4}}[ \t]*+)?{_BOLD}(?:
            user(?:['\u2019]s)?(?:[ ](?:query|question|message|prompt|instruction))?
            | human | instructions? | question | prompt | query | task
          ){_BOLD}[ \t]*+{COLON}{_BOLD}
    ))*+""",
    re.IGNORECASE | re.VERBOSE,
)
"""What a template or a model puts before a user's message."""

_AI: Final = r"""(?:ai|artificial[ ]intelligence|(?:large[ ])?language[ ]model)
    (?:[ ](?:language[ ]model|model|assistant|chatbot|system))?"""
_SELF: Final = rf"""(?:
    as[ ]an?[ ]{_AI}(?:[ ](?:developed|created|trained|made|designed)[ ]by[ ][\w ]{{1,40}})?,?[ ](?:i|my)\b
    | i(?:['\u2019]m|[ ]am)[ ](?:just[ ]|only[ ])?an?[ ]{_AI}
      (?:[.,;!]|[ ](?:and|but|so|that|which|designed|trained|created|developed)\b)
    | (?:sure(?:[ ]thing)?|certainly|of[ ]course|absolutely)[!,.:][ ]+
      (?:(?:here|below)(?:['\u2019]s|[ ]is|[ ]are)|let['\u2019]s|let[ ]me|i(?:['\u2019]ll|['\u2019]d|[ ]can|[ ]will))\b
    | 作为(?:一个|一名|一位)?(?:ai|人工智能|语言模型)
    | en[ ]tant[ ]qu['\u2019](?:ia\b|intelligence[ ]art|assistant|modèle[ ]de[ ]lang)
    | als[ ](?:ki\b|künstliche[ ]intell|sprachmodell)
    | como[ ](?:una?[ ])?(?:ia\b|inteligencia[ ]artif|modelo[ ]de[ ]lenguaje)
    | как[ ](?:ии\b|языковая[ ]модель|искусственный)
)"""
"""What only an assistant says, wherever a paragraph begins."""
_MANNERS: Final = r"""(?:
    i(?:['\u2019]m|[ ]am)[ ]sorry,?[ ]but[ ]i(?:[ ]can(?:not|['\u2019]t)|(?:['\u2019]m|[ ]am)[ ](?:unable|not[ ]able))\b
    | (?:(?:hello|hi|hey|welcome)(?:[ ]there)?[!,.][ ])?(?:how|what)[ ](?:can|may)[ ]i[ ](?:help|assist)[ ]you\b
    | i(?:['\u2019]d|[ ]would)[ ]be[ ](?:happy|glad|delighted)[ ]to[ ](?:help|assist)\b
    | i(?:['\u2019]m|[ ]am)[ ](?:here|happy|glad|ready)[ ]to[ ](?:help|assist)\b
    | i(?:['\u2019]m|[ ]am)[ ]glad[ ]i[ ]could[ ](?:help|assist)\b
    | you(?:['\u2019]re|[ ]are)[ ](?:very[ ]|most[ ])?welcome\b
    | is[ ]there[ ]anything[ ]else[ ](?:that[ ])?i[ ]can[ ](?:help|assist|do[ ]for[ ]you)\b
    | (?:great|good|excellent)[ ]question\b
    | thank[ ]you[ ]for[ ](?:reaching[ ]out|asking|your[ ](?:question|query|interest))\b
    | 很高兴(?:能)?(?:为您|帮助您) | (?:很)?抱歉[\uff0c,]我(?:无法|不能)
)"""
"""What an assistant begins with and a user hardly ever. A letter that a user quotes may hold it."""
_SPEAKS_AS_ASSISTANT: Final = re.compile(rf"{_SELF}|{_MANNERS}", re.IGNORECASE | re.VERBOSE)
_OPENS_AS_ASSISTANT: Final = re.compile(
    rf"""{_SELF} | {_MANNERS}
    | (?:sure|certainly|absolutely)!
    | (?:here|below)(?:['\u2019]s|[ ]is|[ ]are)[ ](?:your|the[ ](?:answer|solution|response|translation|summary))\b
    | it[ ](?:seems|looks|appears)[ ](?:like|that|as[ ]if)[ ]you\b
    | 当然[\uff01!\uff0c,可] | 好的[\uff01!\uff0c,。] | もちろん | конечно[!,]
    | bien[ ]sûr[ ,!] | ¡?claro[!,] | ¡?por[ ]supuesto[!,] | (?:natürlich|selbstverständlich|gerne)[!,]""",
    re.IGNORECASE | re.VERBOSE,
)
"""The same for the first message of a conversation, which cannot reply to anything."""

# Where the assistant's part begins within the text. Marks of a template that the server left out leave the role behind:
# "What is a quark?assistant\n\nA quark is ...".
_ASSISTANT: Final = re.compile(
    rf"""^[ \t]*+(?:
        (?:\#{{1,4}}[ \t]*+)?{_BOLD}
          (?:(?:ai[ ])?assistant(?:['\u2019]s[ ](?:answer|response|reply))?|chatbot|chatgpt|ai){_BOLD}[ \t]*+{COLON}
        | (?:\#{{1,6}}[ \t]++|\*\*)(?:answer|solution|response)(?:\*\*)?[ \t]*+(?:{COLON}|$)
        | \#{{1,6}}[ \t]++(?:step[ ]1\b|(?:instruction|human|user|assistant)[ \t]*+{COLON})
        | <think(?:ing)?> | \[THINK\]
        | (?-i:assistant)[ \t]*+$
    )
    | (?<=[^\w\s'"\u2018\u201c])(?-i:assistant)(?=\n)
    | \n[ \t]*+\n[ \t]*+{_SELF}""",
    re.IGNORECASE | re.VERBOSE | re.MULTILINE,
)

_QUOTES: Final = {'"': '"', "\u201c": "\u201d", "\u00ab": "\u00bb", "\u300c": "\u300d", "'": "'", "**": "**"}
_HALVES: Final = re.compile('["\u201c\u201d\u201e\u00ab\u00bb]|[*][*]')
_DESCRIBES_ASSISTANT: Final = re.compile(
    r"""you(?:[ ]are|['\u2019]re)[ ](?:[^.!?\n ]{1,40}+[ ]){0,9}?(?:assistant|ai|chatbot|language[ ]model)\b
        [^.!?\n]{0,300}+(?:[.!]\s*+|$)
        (?:(?:you[ ](?:are|were|can|have|help|provide|answer|should|will[ ]help)|your[ ](?:role|goal|purpose|job|name))
           \b[^.!?\n]{0,300}+(?:[.!]\s*+|$))*+$
    | cutting[ ]knowledge[ ]date:""",
    re.IGNORECASE | re.VERBOSE,
)
_TAKES_LEAVE: Final = re.compile(
    r"""(?:(?:
        (?:ok(?:ay)?|great|perfect|awesome|wow)(?=[.!,]|$)
        | (?:many[ ])?thank(?:s|[ ]you)(?:[ ](?:so|very)[ ]much|[ ]a[ ]lot|[ ]again)?+(?:[ ]for[ ][^.!?,\n]{1,80}+)?+
        | that(?:['\u2019]s|[ ]is|[ ]was)[ ](?:all|it|great|perfect|(?:very[ ]|really[ ]|so[ ])?helpful)
        | this[ ](?:is|was)[ ](?:great|perfect|(?:very[ ]|really[ ]|so[ ])?helpful)
        | (?:good)?bye | see[ ]you | you[ ]too | have[ ]a[ ](?:great|nice|good)[ ]day
    )[.!, ]*+)++""",
    re.IGNORECASE | re.VERBOSE,
)


def _read_message(completion: Completion, opens: re.Pattern[str]) -> tuple[Span, str | None]:
    """Return the user's message, and the rule that rejects it. ``opens`` matches where an assistant speaks.

    The rules, in order: ``no_message`` (nothing comes before the assistant's part), ``assistant_voice``,
    ``unfinished`` (the token limit came first), ``system_prompt`` (it describes the assistant and asks nothing),
    ``ends_with_colon`` (what should follow is missing). The span of a text without a message is all of it, and
    `NOWHERE` if it is blank.
    """
    text = completion.text
    whole = trim(text, 0, len(text))
    opening = _OPENING.match(text, *whole)
    start = opening.end() if opening else whole[0]
    end = _end(text, start, whole[1])
    span = _unquoted(text, start, whole[1] if end is None else end)
    if span == NOWHERE:
        return whole, "no_message"
    if opens.match(text, *span):
        return span, "assistant_voice"
    if end is None and is_cut(completion):
        return span, "unfinished"
    if _DESCRIBES_ASSISTANT.match(text, *span):
        return span, "system_prompt"
    if text.endswith((":", "\uff1a"), *span):
        return span, "ends_with_colon"
    return span, None


def _end(text: str, start: int, end: int) -> int | None:
    """Return where a mark ends the message or the assistant's part begins, or ``None``."""
    found = (
        _first_mark(text, start, end),
        _HALF_MARK.search(text, max(start, end - _LONGEST_MARK), end),
        _ASSISTANT.search(text, start, end),
    )
    return min((match.start() for match in found if match), default=None)


def _first_mark(text: str, start: int, end: int) -> re.Match[str] | None:
    """Return the first mark of a template. ``</s>`` after ``<s>`` is HTML."""
    html = text.find("<s>", start, end)
    for mark in _MARK.finditer(text, start, end):
        if mark[0] != "</s>" or html < 0 or mark.start() < html:
            return mark
    return None


def _unquoted(text: str, start: int, end: int) -> Span:
    """Return the span without blanks and quotation marks around it, or a mark whose other half is missing."""
    start, end = trim(text, start, end)
    for opening, closing in _QUOTES.items():
        inner = (start + len(opening), end - len(closing))
        wrapped = text.startswith(opening, start, end) and text.endswith(closing, start, end) and inner[0] <= inner[1]
        if wrapped and closing not in text[slice(*inner)]:
            start, end = trim(text, *inner)
    marks = _HALVES.findall(text, start, end)
    if len(marks) == 1 and text.startswith(marks[0], start, end):
        start, end = trim(text, start + len(marks[0]), end)
    elif len(marks) == 1 and text.endswith(marks[0], start, end):
        start, end = trim(text, start, end - len(marks[0]))
    return start, end


def _read_instruction(completion: Completion, _request: Request) -> Sequence[Item]:
    """Read the first message of a conversation. A blank completion has none."""
    span, rule = _read_message(completion, _OPENS_AS_ASSISTANT)
    return () if span == NOWHERE else (Item(span, completion.text[slice(*span)], rule),)


def _read_follow_up(completion: Completion, subject: Subject, check: Callable[[str], str | None]) -> StepOutcome:
    """Read the user's next message.

    Rules of its own: ``repeats_turn`` (the user has said that before) and ``takes_leave`` (nothing but thanks). It may
    be shorter than an instruction.
    """
    span, rule = _read_message(completion, _SPEAKS_AS_ASSISTANT)
    text = completion.text[slice(*span)]
    if rule is None and _folded(text) in {_folded(turn.user) for turn in subject.turns}:
        rule = "repeats_turn"
    if rule is None and _TAKES_LEAVE.fullmatch(text):
        rule = "takes_leave"
    if rule is None and (rule := check(text)) == "too_short":
        rule = None
    return Continued(span) if rule is None else Rejected(rule)


# -- answers -----------------------------------------------------------------------------------------------------------


def _read_answer(completion: Completion, subject: Subject) -> StepOutcome:
    """Read an answer: all of it but thinking. A refusal is an answer.

    Rules: ``unclosed_thinking``, ``empty_output``, ``unfinished`` (the token limit came first),
    ``output_repeats_instruction``.
    """
    span, rule = whole_answer(completion, keeps_fence=True)  # Markdown belongs to a chat answer
    asked = subject.question
    is_short = span[1] - span[0] <= 2 * len(asked)
    if rule is None and is_short and _folded(completion.text[slice(*span)]) == _folded(asked):
        rule = "output_repeats_instruction"
    return Answered(((NOWHERE, span),)) if rule is None else Answered((), (rule,))


def _folded(text: str) -> str:
    """Return a text on one line, without case and the punctuation at its end."""
    return " ".join(text.casefold().split()).rstrip(" .!?")
