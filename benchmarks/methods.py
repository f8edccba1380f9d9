"""What each method brings on one server: rows, tokens, words, rejections and seconds, side by side.

``python -m benchmarks.methods --base-url URL [--rows 100] [--methods NAME ...] [--show 3] [--folder DIR]``

A method is given with flags of its own where it needs some: ``--methods self-instruct 'magpie --turns 2'``. Without
``--methods``, all of fastgen's are measured. Each one is the command that a user would enter. They run one after the
other, and each ends with ``--rows`` complete rows, after ``--limit`` seconds, or by itself. ``--folder DIR`` keeps the
runs, and the same command resumes them.

No file is needed. The documents of ``backtranslate`` are the long outputs of the seed tasks that ship with fastgen, and
it ends when all are used.

*Rows* are complete. *Kept* are instructions that passed the rules and the similarity filter, *empty* those of them that
ended without an answer. Tokens are those that the server generated, for all steps and everything rejected. Words are
means: of an instruction with its input, of an answer, and of all turns of a conversation together. Seconds are from the
run's first commit to its last. On an endpoint that is shared, only the other columns can be compared.
"""

from __future__ import annotations

import argparse
import re
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson

from benchmarks.harness import ROOT, finish, print_table
from fastgen.methods.backtranslate import usable
from fastgen.methods.base import Answered, Commit, Created, Rejected
from fastgen.methods.catalogue import METHODS
from fastgen.methods.self_instruct.seeds import default_seed_path, load_seed_tasks
from fastgen.store.ledger import Ledger
from fastgen.store.reader import FinishedInstruction, finished_instructions, open_run
from fastgen.text import printable

MOST_RULES = 4  # in a cell of the table; the JSON has all
SHOWN_CHARACTERS = 600
STOP_S = 120.0
"""Seconds that a command has to end after it was asked to."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What one method brought. ``rejected`` counts by ``step.rule``."""

    method: str
    api: str
    model: str
    rows: int
    kept: int
    empty: int
    requests: int
    tokens: int
    seconds: float
    instruction_words: float
    answer_words: float
    rejected: dict[str, int]
    ended: str

    @property
    def kept_per_1000(self) -> float:
        """Kept instructions per 1,000 generated tokens."""
        return 1000 * self.kept / max(1, self.tokens)

    @property
    def rows_per_1000(self) -> float:
        """Complete rows per 1,000 generated tokens."""
        return 1000 * self.rows / max(1, self.tokens)

    @property
    def empty_share(self) -> float:
        """Share of the finished instructions that have no answer, 0..1."""
        return self.empty / max(1, self.rows + self.empty)


def write_documents(path: Path) -> int:
    """Write the shipped seeds' outputs that can be documents as JSON lines, and return how many there are."""
    outputs = (instance.output for task in load_seed_tasks(default_seed_path()) for instance in task.instances)
    texts = [text for text in dict.fromkeys(outputs) if usable(text) is None]
    path.write_bytes(b"".join(orjson.dumps({"text": text}) + b"\n" for text in texts))
    return len(texts)


def command_of(method: str, folder: Path, documents: Path, server: Sequence[str], rows: int) -> list[str]:
    """The command of a user for one of ``--methods``."""
    flags = shlex.split(method)
    needs = METHODS[flags[0]].needs_documents and "--documents" not in flags
    given = ("--documents", str(documents)) if needs else ()
    asked = ("--method", *flags, *given, "--num-instructions", str(rows), "--run-dir", str(folder))
    return [sys.executable, "-m", "fastgen", "generate", *asked, *server]


def run(command: Sequence[str], limit_s: float) -> str:
    """Run a command for at most ``limit_s`` seconds, and return in a few words how it ended.

    :raises SystemExit: the command was refused, as for a wrong flag.
    """
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        try:
            _, said = process.communicate(timeout=limit_s)
            ended = {0: "all rows", 3: "by itself"}.get(process.returncode)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=STOP_S)
            ended = f"after {limit_s:g} s"
        finally:
            process.kill()
    last = next((line for line in reversed(said.splitlines()) if line.strip()), "it said nothing")
    if ended is None:
        raise SystemExit(f"{shlex.join(command)}: {last}")
    return f"{ended}: {last}" if ended == "by itself" else ended


def read(method: str, folder: Path, ended: str) -> tuple[Figures, list[FinishedInstruction]]:
    """The figures of a run folder, and its rows."""
    opened, ledger = open_run(folder), Ledger()
    rejected: Counter[str] = Counter()
    commits = []
    for commit in opened.folder.whole_commits():
        ledger.apply(commit)
        rejected.update(f"{commit.step}.{rule}" for rule in _rules(commit))
        commits.append(commit)
    rows = [one for one in finished_instructions(commits, opened) if one.instances]
    figures = Figures(
        method=method,
        api=str(opened.configuration["api"]),
        model=str(opened.configuration["model"]),
        rows=ledger.complete,
        kept=ledger.kept,
        empty=ledger.empty,
        requests=ledger.completions.total(),
        tokens=ledger.generated_tokens,
        seconds=ledger.last_s - ledger.started_s,
        instruction_words=_mean_words([_asked(row) for row in rows]),
        answer_words=_mean_words([_answer(row) for row in rows]),
        rejected=dict(rejected.most_common()),
        ended=ended,
    )
    return figures, rows


def _rules(commit: Commit) -> Sequence[str]:
    """The rules that rejected something of a commit's completion."""
    match commit.outcome:
        case Created(_, rejected):
            return [one.rule for one in rejected]
        case Answered(_, rules):
            return rules
        case Rejected(rule):
            return (rule,)
    return ()


def _asked(row: FinishedInstruction) -> str:
    if row.turns:
        return "\n\n".join(turn.user for turn in row.turns)
    given = row.instances[0].input
    return f"{row.instruction}\n\n{given}" if given else row.instruction


def _answer(row: FinishedInstruction) -> str:
    return "\n\n".join(turn.assistant for turn in row.turns) if row.turns else row.instances[0].output


def _mean_words(texts: Sequence[str]) -> float:
    return statistics.fmean(len(text.split()) for text in texts) if texts else 0.0


def show(figures: Sequence[Figures]) -> None:
    """Print the table."""
    columns = (
        *("method", "API", "rows", "tokens", "kept/1k tokens", "rows/1k tokens", "words asked", "words answered"),
        *("empty", "rejected", "seconds"),
    )
    rows = []
    for one in figures:
        listed = ", ".join(f"{name} {count}" for name, count in list(one.rejected.items())[:MOST_RULES])
        more = sum(list(one.rejected.values())[MOST_RULES:])
        rules = f"{listed}, others {more}" if more else listed or "none"
        rates = (one.kept_per_1000, one.rows_per_1000, one.instruction_words, one.answer_words)
        first = (f"`{one.method}`", one.api, one.rows, f"{one.tokens:,}")
        rows.append((*first, *rates, f"{one.empty_share:.0%}", rules, one.seconds))
    print_table(columns, rows)


def show_rows(method: str, rows: Sequence[FinishedInstruction], count: int) -> None:
    """Print the first rows of a method, shortened."""
    for number, row in enumerate(rows[:count], 1):
        print(f"\n-- {method}, row {number}")
        print(f"asked:    {printable(_asked(row))[:SHOWN_CHARACTERS]}")
        print(f"answered: {printable(_answer(row))[:SHOWN_CHARACTERS]}", flush=True)


def main() -> None:
    """Run the methods one after the other, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-url", required=True, help="an OpenAI-compatible server")
    parser.add_argument("--model", help="default: the server's only model")
    parser.add_argument("--rows", type=int, default=100, help="complete rows of each method")
    parser.add_argument("--methods", nargs="+", default=[*METHODS], help="names, each with flags of its own if needed")
    parser.add_argument("--limit", type=float, default=1800.0, help="most seconds of each method")
    parser.add_argument("--folder", type=Path, help="keep the run folders here, or resume those that are here")
    parser.add_argument("--show", type=int, default=0, help="rows of each method to print")
    given = parser.parse_args()
    for method in given.methods:
        if (shlex.split(method) or [""])[0] not in METHODS:
            parser.error(f"--methods {method!r}: begins with none of {', '.join(METHODS)}")
    server = ["--base-url", given.base_url, *(("--model", given.model) if given.model else ())]
    figures = []
    with ExitStack() as stack:
        folder = given.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        write_documents(documents := folder / "documents.jsonl")
        for method in given.methods:
            run_folder = folder / re.sub(r"[^a-z0-9]+", "-", method.lower()).strip("-")
            print(f"{method} ...", file=sys.stderr, flush=True)
            ended = run(command_of(method, run_folder, documents, server, given.rows), given.limit)
            found, rows = read(method, run_folder, ended)
            figures.append(found)
            show_rows(method, rows, given.show)
    print()
    show(figures)
    per_1000 = ("kept_per_1000", "rows_per_1000", "empty_share")
    finish("methods", {"methods": [asdict(one) | {name: getattr(one, name) for name in per_1000} for one in figures]})


if __name__ == "__main__":
    main()
