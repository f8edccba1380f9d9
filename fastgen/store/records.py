"""The lines of a run's log: the JSON form of a `Commit`, of which there is one per judged choice of a completion.

A commit has the raw completion and, as spans of it, every decision about it. So replaying commits rebuilds the whole
state of a run without applying the rules again, and other rules can be applied to the raw text later.

JSON keys of a line (the log adds ``crc``)::

    req, choice, stage, t   request number, choice index, name of the step, Unix time (s)
    subject                 machine instruction number that the request works on (steps after the first)
    demos                   pool indexes of the demonstrations, or of what the instruction is made from (first step)
    shown                   number of demonstrations in the prompt, where a rebuilt run does not have them all
    drawn                   what else was drawn for the prompt, by name (first step)
    text, finish, tokens    raw completion, finish reason, [prompt tokens, completion tokens]
    reasoning               what the model thought before it, where the server sent that apart from the text
    first                   machine instruction number of the first kept one; the others follow it
    kept                    [[start, end, nearest seed | null, rouge_l | null, pool index, rouge_l, ...], ...]
    inputs                  [[start, end] | null, ...]: the inputs of those kept, if any has one
    rejected                first step: [[start, end, rule], [start, end, rule, rouge_l, pool index], ...]
                            answers: [rule, ...]
    is_classification       the label that says whether it is a classification task
    label                   any other label
    unread                  why the answer was none that the step expects (the label is then a default); mostly absent
    instances               [[input start, input end, output start, output end], ...]
    message                 [start, end] of the user's next message
    rejected_by             the rule that ends the instruction, with ``label`` if it has one
    failed, detail, settles instead of an outcome: the request failed permanently; ``settles``: no other is made
    ended                   "complete", "empty" or "": how the instruction ended, where the outcome does not say it
"""

from __future__ import annotations

import sys
from typing import Any

from fastgen.methods.base import (
    Answered,
    Commit,
    Continued,
    Created,
    Kept,
    Labelled,
    Outcome,
    Rejected,
    Rejection,
    ends_by,
)
from fastgen.types import Completion, Failure, token_count

SCORE_DIGITS = 3  # of ROUGE-L values in the log; decisions are made on exact values


def encode(commit: Commit) -> dict[str, Any]:
    """The line's JSON object, in key order, without the checksum."""
    line: dict[str, Any] = {
        "req": commit.request,
        "choice": commit.choice,
        "stage": commit.step,
        "t": round(commit.time_s, 2),
    }
    if commit.subject is not None:
        line["subject"] = commit.subject
    if commit.demonstrations:
        line["demos"] = commit.demonstrations
    if commit.shown is not None:
        line["shown"] = commit.shown
    if commit.drawn:
        line["drawn"] = commit.drawn
    completion = commit.completion
    line["text"] = completion.text
    line["finish"] = completion.finish_reason
    line["tokens"] = (completion.prompt_tokens, completion.completion_tokens)
    if completion.reasoning:
        line["reasoning"] = completion.reasoning
    line |= _encode_outcome(commit.outcome)
    if commit.end is not None and commit.end != ends_by(commit.outcome):
        line["ended"] = commit.end
    return line


def _encode_outcome(outcome: Outcome) -> dict[str, Any]:
    match outcome:
        case Created(kept, rejected):
            line = {
                "first": kept[0].number if kept else None,
                "kept": [_encode_kept(k) for k in kept],
                "rejected": [_encode_rejection(r) for r in rejected],
            }
            inputs = [one.input for one in kept]
            return line | {"inputs": inputs} if any(inputs) else line
        case Labelled(value, unread):
            label = {"is_classification" if isinstance(value, bool) else "label": value}
            return label if unread is None else label | {"unread": unread}
        case Answered(instances, rules):
            return {"instances": [(*i, *o) for i, o in instances], "rejected": rules}
        case Continued(span):
            return {"message": span}
        case Rejected(rule, value):
            return {"rejected_by": rule} if value is None else {"rejected_by": rule, "label": value}
        case Failure(kind, detail, settles):
            return {"failed": kind, "detail": detail, "settles": settles}


def _encode_kept(kept: Kept) -> tuple[Any, ...]:
    checked = (value for index, score in kept.nearest_checked for value in (index, round(score, SCORE_DIGITS)))
    seed, score = kept.nearest_seed or (None, None)
    return (*kept.span, seed, None if score is None else round(score, SCORE_DIGITS), *checked)


def _encode_rejection(rejection: Rejection) -> tuple[Any, ...]:
    if rejection.neighbour is None:
        return (*rejection.span, rejection.rule)
    index, score = rejection.neighbour
    return (*rejection.span, rejection.rule, round(score, SCORE_DIGITS), index)


def decode(line: dict[str, Any]) -> Commit:
    """The inverse of `encode` (scores as rounded there, token counts that cannot be right as 0).

    :raises KeyError, TypeError, ValueError: the object is not one that `encode` wrote.
    """
    prompt_tokens, completion_tokens = line["tokens"]
    return Commit(
        line["req"],
        line["choice"],
        sys.intern(line["stage"]),
        line.get("subject"),
        tuple(line.get("demos", ())),
        Completion(
            line["text"],
            line["finish"],
            token_count(prompt_tokens),
            token_count(completion_tokens),
            line.get("reasoning", ""),
        ),
        _decode_outcome(line),
        line["t"],
        line.get("shown"),
        line.get("drawn"),
        line.get("ended"),
    )


def _decode_outcome(line: dict[str, Any]) -> Outcome:
    if "failed" in line:
        return Failure(line["failed"], line["detail"], line["settles"])
    if "kept" in line:
        kept = tuple(_decode_kept(line["first"] + i, k) for i, k in enumerate(line["kept"]))
        if "inputs" in line:
            spans = [None if span is None else (span[0], span[1]) for span in line["inputs"]]
            kept = tuple(one._replace(input=span) for one, span in zip(kept, spans, strict=True))
        return Created(kept, tuple(_decode_rejection(*r) for r in line["rejected"]))
    if "instances" in line:
        instances = tuple(((a, b), (c, d)) for a, b, c, d in line["instances"])
        return Answered(instances, tuple(line["rejected"]))
    if "message" in line:
        start, end = line["message"]
        return Continued((start, end))
    if "rejected_by" in line:
        return Rejected(line["rejected_by"], line.get("label"))
    label = line["is_classification"] if "is_classification" in line else line["label"]
    return Labelled(label, line.get("unread"))


def _decode_kept(number: int, values: list[Any]) -> Kept:
    start, end, seed, score, *checked = values
    nearest_seed = None if seed is None else (seed, score)
    return Kept((start, end), number, nearest_seed, tuple(zip(checked[::2], checked[1::2], strict=True)))


def _decode_rejection(
    start: int, end: int, rule: str, score: float | None = None, index: int | None = None
) -> Rejection:
    neighbour = None if index is None or score is None else (index, score)
    return Rejection((start, end), rule, neighbour)
