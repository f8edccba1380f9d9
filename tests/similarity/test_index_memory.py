"""Indexes where address space is short, and searches that would visit too many nodes: the same decisions."""

from __future__ import annotations

import multiprocessing
import random
import resource
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from fastgen.similarity.exact import ExactIndex
from fastgen.similarity.exhaustive import ExhaustiveIndex
from fastgen.similarity.novelty import INDEX_KINDS, IndexKind, NoveltyFilter, Verdict, warm_up
from fastgen.similarity.rouge import TOKENIZERS, Tokenizer
from tests.similarity.test_index_arrays import stored

FORK = multiprocessing.get_context("fork")
SPARE_BYTES = 400 << 20


def texts(count: int) -> list[str]:
    draw = random.Random(1)
    words = [f"w{number}" for number in range(3000)]
    lengths = [draw.choice([5, 9, 20]) for _ in range(count)]
    made = [" ".join(words[int(draw.random() ** 2 * 3000)] for _ in range(length)) for length in lengths]
    return [draw.choice(made) + " again" if draw.random() < 0.2 else text for text in made]


def decisions(kind: IndexKind) -> list[list[Verdict]]:
    novelty = NoveltyFilter(index=kind)
    made = texts(12_000)
    novelty.add_seeds(made[:30])
    novelty.add(made[30:3000])
    found = [novelty.filter(made[begin : begin + 64]) for begin in range(3000, len(made), 64)]
    found.append(novelty.filter(["word " * 3000, "other " * 2999 + "word", *made[:500]]))
    other = NoveltyFilter(index=kind)
    other.add_seeds(made[:30])
    other.take_over(other.load(stored(novelty.save())))
    found.append(other.filter(made[::-7]))
    return found


def decide_with_little(kind: IndexKind, answer: Connection) -> None:
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + SPARE_BYTES, in_use + SPARE_BYTES))
    try:
        answer.send(decisions(kind))
    except BaseException as error:
        answer.send(repr(error))
        raise


@pytest.mark.parametrize("kind", INDEX_KINDS)
def test_a_process_with_little_address_space_decides_the_same(kind: IndexKind) -> None:
    warm_up(kind)
    here, there = FORK.Pipe()
    process = FORK.Process(target=decide_with_little, args=(kind, there))
    process.start()
    there.close()
    assert here.recv() == decisions(kind)
    process.join()


def test_a_search_that_would_visit_too_many_nodes_decides_as_the_scan() -> None:
    draw = random.Random(5)
    words = [f"w{number}" for number in range(800)]
    common = [" ".join(draw.sample(words, 790)).encode() for _ in range(6)]
    near = [b" ".join([*text.split()[:700], b"x%d" % at]) for at, text in enumerate(common)]
    other = [" ".join(draw.choices(words, k=draw.choice([5, 20, 750]))).encode() for _ in range(60)]
    exact, scan = ExactIndex(0.7, "gt", crowded=2, nodes=1 << 10), ExhaustiveIndex(0.7, "gt")
    for index in (exact, scan):
        index.add(common * 3)
    for batch in (near, other, near[::-1], other):
        found, expected = exact.decide(batch), scan.decide(batch)
        assert found.novel.tolist() == expected.novel.tolist()
        rejected = expected.novel == 0
        assert found.entry[rejected, 0].tolist() == expected.entry[rejected, 0].tolist()
    exact.truncate(18)
    scan.truncate(18)
    assert exact.decide(other).novel.tolist() == scan.decide(other).novel.tolist()


HOSTILE = [
    "",
    " ",
    "...!?,;:",
    "\0",
    "\0\0 word \0",
    "\ud800",
    "a\udfffb word",
    "word " * 2_000,
    "word\0" * 2_000,
    "x" * 200_000,
    "é" * 200_000,
    "水" * 2_000,
    "\u0301" * 500,
    " ".join(f"w{number}" for number in range(4_000)),
    " ".join(f"w{number}" for number in range(3_800)) + " end",
    "e\u0301" * 1000,
    "\u200b\ufeff\u202e",
    "A",
    "a",
    "a a",
    "word " * 64,
    "word " * 65,
    "\U0010ffff word",
    "İstanbul ıſK",
]


@pytest.mark.parametrize("kind", ["lsh", "exact"])
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("unchecked", [0, 1, 3])
def test_hostile_texts_are_decided_as_by_the_scan(kind: IndexKind, tokenizer: Tokenizer, unchecked: int) -> None:
    """Also after they were added unchecked, several times, and taken back again."""
    draw = random.Random(unchecked)
    index, scan = (NoveltyFilter(index=one, tokenizer=tokenizer) for one in (kind, "exhaustive"))
    for _ in range(3):
        batch = draw.choices(HOSTILE, k=20) + [text + " more" for text in draw.choices(HOSTILE, k=5)]
        for novelty in (index, scan):
            novelty.add(HOSTILE * unchecked)
            novelty.decide(batch[::-1])  # forgotten
        found, expected = index.filter(batch), scan.filter(batch)
        assert [verdict.novel for verdict in found] == [verdict.novel for verdict in expected]
        assert [v.score for v in found if not v.novel] == [v.score for v in expected if not v.novel]
        assert len(index) == len(scan)
