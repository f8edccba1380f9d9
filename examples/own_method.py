"""A method of your own: exam questions with worked answers, without the easy ones.

    fastgen generate --method examples/own_method.py --base-url URL --model NAME --num-instructions 500 --run-dir exam

`build` declares what to ask and what an answer means. The creation proposes questions. Those that pass the run's rules
and the similarity filter take the steps, one after another. fastgen adds resume, the exact target and exports. The
docstrings of `fastgen.methods.base` describe everything that is used here.
"""

import re

from fastgen.methods import base
from fastgen.text import answer_span, is_cut, trim
from fastgen.types import Completion, Message, Request, Sampling, Span

TOPICS = ("algebra", "chemistry", "geography", "grammar", "music theory")  # where --topics names no others
ASKING, RATING, ANSWERING = Sampling(1.0, 0.95, 400), Sampling(0.0, 1.0, 20), Sampling(0.7, 0.95, 2048)
RATE = "How difficult is this exam question, from 1 to 5? Reply with one digit.\n\n"


def build(setup: base.Setup) -> base.Method:
    """Return the method. A resume builds it again, so the same setup must give the same method."""

    def ask_question(draw: base.Draw) -> base.Ask:
        drawn = {"topic": draw.random("topic").choice(TOPICS), **setup.context.draw(draw)}  # chance is in `draw` only
        return ask(f"Write one exam question about {drawn['topic']}. Reply with the question and nothing else.", drawn)

    question = base.Creation(sampling=ASKING, ask=ask_question, read=read_question, samples=setup.samples)
    rating = base.Step(name="difficulty", sampling=RATING, ask=lambda q: ask(RATE + q.text), read=read_rating)
    answer = base.Step(name="answer", sampling=ANSWERING, ask=lambda q: ask(q.text), read=read_answer)
    return base.Method(name="exam", creation=question, steps=(rating, answer), check=setup.check, seed=setup.seed)


def ask(text: str, drawn: dict[str, str] | None = None) -> base.Ask:
    return base.Ask((Message("user", text),), drawn=drawn)


def written(completion: Completion) -> Span:
    """Where the completion has its answer, without thinking. What is kept of a completion is always such a span."""
    return trim(completion.text, *(answer_span(completion.text) or (0, 0)))


def read_question(completion: Completion, _: Request) -> list[base.Item]:
    start, end = written(completion)
    rule = "unfinished" if is_cut(completion) else None  # a rule says why something is rejected
    return [base.Item((start, end), completion.text[start:end], rule)] if start < end else []


def read_rating(completion: Completion, _: base.Subject) -> base.StepOutcome:
    digit = re.search("[1-5]", completion.text[slice(*written(completion))])
    if digit is None:
        return base.Labelled(3, unread="no_digit")  # `fastgen status` counts these
    return base.Rejected("too_easy", 1) if digit[0] == "1" else base.Labelled(int(digit[0]))


def read_answer(completion: Completion, _: base.Subject) -> base.StepOutcome:
    span = written(completion)
    ends_early = is_cut(completion) or span == (0, 0)
    return base.Answered((), ("unfinished",)) if ends_early else base.Answered((((0, 0), span),))
