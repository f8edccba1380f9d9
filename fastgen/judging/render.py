"""The figures of :mod:`fastgen.judging.summary` for people, as lines of text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastgen.judging.summary import ASKED

_BAR = 30


def render(figures: Mapping[str, Any]) -> str:
    """Everything that `summarise` found."""
    parts = [_judge(judge) for judge in figures["judges"]]
    if figures["between_judges"] is not None:
        parts.append("agreement between judges\n" + _agreement(figures["between_judges"]))
    return "\n\n".join(parts)


def one_line(figures: Mapping[str, Any]) -> str:
    """One judge in one line, for `fastgen status`."""
    right = figures["questions"]["all_right"]["share"]
    if right is None:
        return f"{figures['name']}: nothing readable yet"
    return (
        f"{figures['name']}: {figures['judged']:,} instances, all three right {right:.0%}, mean score "
        f"{figures['mean_score']:.2f}"
    )


def _judge(judge: Mapping[str, Any]) -> str:
    unreadable, failed = judge["unreadable"], judge["failed_requests"]
    share = f" ({sum(unreadable.values()) / judge['answers']:.1%})" if judge["answers"] else ""
    lines = [
        f"{judge['name']}: {judge['judged']:,} of {judge['instances']:,} instances judged by {judge['model']}",
        f"  prompt {judge['prompt']}, --api {judge['api']}, temperature {judge['temperature']}",
        f"  answers            {judge['answers']:,}, {judge['completion_tokens']:,} tokens",
        f"  unreadable         {sum(unreadable.values()):,}{share}: {_listed(unreadable)}",
        f"  failed requests    {sum(failed.values()):,}: {_listed(failed)}",
        f"  without a verdict  {judge['unjudged']:,} instances that were asked about",
    ]
    if judge["judged"]:
        lines += [
            "",
            "                         yes   95 % interval   original",
            *map(_question, judge["questions"].items()),
        ]
        lines += ["", f"  score (median of the votes), mean {judge['mean_score']:.2f}", *_histogram(judge["scores"])]
    if judge["vote_agreement"] is not None:
        lines += ["", "  agreement between votes", _agreement(judge["vote_agreement"])]
    return "\n".join(lines)


def _question(item: tuple[str, Mapping[str, Any]]) -> str:
    question, one = item
    interval = f"{one['low']:>5.1%} to {one['high']:>5.1%}"
    return f"  {ASKED[question]:<20} {one['share']:>6.1%}   {interval:<16} {one['paper']:>6.0%}"


def _histogram(scores: Mapping[str, int]) -> list[str]:
    most = max(scores.values())
    return [f"    {score:>3}  {'#' * round(_BAR * count / most):<{_BAR}} {count:,}" for score, count in scores.items()]


def _agreement(found: Mapping[str, Any]) -> str:
    lines = ["                         alpha   95 % interval      equal   instances"]
    for name, one in found.items():
        if one["alpha"] is None:
            alpha = "    -   nothing varies "
        else:
            alpha = f"{one['alpha']:>5.2f}   {one['low']:>5.2f} to {one['high']:>5.2f}"
        equal = "-" if one["percent"] is None else f"{one['percent']:.1%}"
        lines.append(f"  {ASKED.get(name, name):<22} {alpha:<24} {equal:>6}   {one['items']:,}")
    return "\n".join(lines)


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"
