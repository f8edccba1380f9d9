"""The filter decides as a scan with rouge_score would, in any batch size, with every index that promises it."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastgen.errors import InputError
from fastgen.similarity.novelty import INDEX_KINDS, IndexKind, NoveltyFilter, Verdict, warm_up
from fastgen.similarity.rouge import REJECT_AT, RejectAt, rejects, rouge_l_f1, tokenise

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastgen.similarity.pool import CandidateIndex

EXACT_KINDS: tuple[IndexKind, ...] = ("exhaustive", "exact")


def make_texts(rng: random.Random, count: int, *, words: int, longest: int) -> list[str]:
    """Random texts, a good half of them edited copies of earlier ones."""
    texts: list[list[str]] = []
    for _ in range(count):
        if texts and rng.random() < 0.6:
            rate = rng.random() * 0.5
            source = rng.choice(texts)
            text = [word if rng.random() > rate else f"w{rng.randrange(words)}" for word in source]
            text = [word for word in text if rng.random() > rate / 2]
        else:
            text = [f"w{int(rng.random() ** 2 * words)}" for _ in range(rng.randrange(longest + 1))]
        texts.append(text)
    return [" ".join(text) for text in texts]


def scan(pool: Sequence[list[str]], text: list[str]) -> tuple[int, float]:
    """Most similar pool member, lowest index among equals, by the reference ROUGE-L (itself tested on rouge_score)."""
    scores = [rouge_l_f1(other, text) for other in pool]
    best = max(scores, default=0.0)
    return (scores.index(best), best) if best > 0 else (-1, 0.0)


def check_against_scan(
    novelty: NoveltyFilter, seeds: Sequence[str], texts: Sequence[str], verdicts: Sequence[Verdict]
) -> None:
    pool = [tokenise(seed) for seed in seeds]
    for text, verdict in zip(texts, verdicts, strict=True):
        tokens = tokenise(text)
        nearest, score = scan(pool, tokens)
        rejected = rejects(score, novelty.threshold, novelty.reject_at)
        assert verdict.novel is not rejected
        if rejected:
            assert (verdict.neighbour, verdict.score, verdict.nearest_seed) == (nearest, score, None)
        elif seeds:
            seed, seed_score = scan(pool[: len(seeds)], tokens)
            assert verdict.nearest_seed == (max(seed, 0), seed_score)
        for index, met in verdict.nearest_checked:
            assert met == rouge_l_f1(pool[index], tokens)
        assert list(verdict.nearest_checked) == sorted(verdict.nearest_checked, key=lambda pair: (-pair[1], pair[0]))
        if verdict.novel:
            pool.append(tokens)
    assert len(pool) == len(novelty)


@pytest.mark.parametrize("index", EXACT_KINDS)
@pytest.mark.parametrize("reject_at", REJECT_AT)
@pytest.mark.parametrize("threshold", [0.3, 0.45, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0])
def test_every_decision_is_the_scans(threshold: float, reject_at: RejectAt, index: IndexKind) -> None:
    rng = random.Random(f"{threshold} {reject_at}")
    seeds = make_texts(rng, 12, words=40, longest=14)
    texts = make_texts(rng, 150, words=40, longest=14)
    novelty = NoveltyFilter(threshold=threshold, reject_at=reject_at, index=index)
    novelty.add_seeds(seeds)
    check_against_scan(novelty, seeds, texts, novelty.filter(texts))


@pytest.mark.parametrize("index", EXACT_KINDS)
@pytest.mark.parametrize(("words", "longest"), [(2, 20), (3, 90), (6, 60), (300, 130), (2000, 400)])
def test_decisions_are_the_scans_for_tiny_vocabularies_and_long_texts(
    words: int, longest: int, index: IndexKind
) -> None:
    rng = random.Random(words)
    texts = make_texts(rng, 70, words=words, longest=longest)
    novelty = NoveltyFilter(index=index)
    check_against_scan(novelty, [], texts, novelty.filter(texts))


@given(
    st.lists(st.lists(st.sampled_from("abcd"), max_size=9), max_size=25),
    st.sampled_from([0.3, 0.5, 0.6, 0.7, 0.75, 0.9, 1.0]),
    st.sampled_from(REJECT_AT),
    st.sampled_from(EXACT_KINDS),
)
@settings(max_examples=150, deadline=None)
def test_no_small_pool_breaks_the_exact_index(
    lists: list[list[str]], threshold: float, reject_at: RejectAt, index: IndexKind
) -> None:
    texts = [" ".join(words) for words in lists]
    novelty = NoveltyFilter(threshold=threshold, reject_at=reject_at, index=index)
    check_against_scan(novelty, [], texts, novelty.filter(texts))


@pytest.mark.parametrize(("reject_at", "kept"), [("gt", True), ("ge", False)])
@pytest.mark.parametrize("index", INDEX_KINDS)
def test_a_score_of_exactly_the_threshold_follows_the_rule(index: IndexKind, reject_at: RejectAt, kept: bool) -> None:
    novelty = NoveltyFilter(threshold=0.5, reject_at=reject_at, index=index, lsh_bands=200, lsh_rows=1)
    novelty.add(["a b c d"])
    verdict = novelty.filter(["a b x y"])[0]
    assert verdict.novel is kept
    assert kept or verdict.score == 0.5


@pytest.mark.parametrize("index", INDEX_KINDS)
@pytest.mark.parametrize("batch", [1, 7, 64])
def test_batches_of_any_size_give_the_same_verdicts(index: IndexKind, batch: int) -> None:
    rng = random.Random(5)
    seeds = make_texts(rng, 20, words=80, longest=20)
    texts = make_texts(rng, 900, words=80, longest=20)
    whole = NoveltyFilter(index=index)
    whole.add_seeds(seeds)
    expected = whole.filter(texts)
    novelty = NoveltyFilter(index=index)
    novelty.add_seeds(seeds)
    verdicts = []
    for start in range(0, len(texts), batch):
        verdicts += novelty.filter(texts[start : start + batch])
    assert verdicts == expected
    assert len(novelty) == len(whole)


@pytest.mark.parametrize("index", INDEX_KINDS)
def test_a_decision_leaves_the_pool_as_it_was_until_it_is_admitted(index: IndexKind) -> None:
    rng = random.Random(6)
    texts = make_texts(rng, 700, words=60, longest=16)
    novelty, plain = NoveltyFilter(index=index), NoveltyFilter(index=index)
    for start in range(0, 700, 50):
        batch = texts[start : start + 50]
        novelty.decide([f"{text} never admitted {start}" for text in batch])
        verdicts = novelty.decide(batch)
        assert len(novelty) == len(plain)
        novelty.admit()
        assert [(v.novel, v.score) for v in verdicts if not v.novel] == [
            (v.novel, v.score) for v in plain.filter(batch) if not v.novel
        ]
        assert len(novelty) == len(plain)


@pytest.mark.parametrize("index", INDEX_KINDS)
def test_texts_are_admitted_in_parts_and_the_rest_is_forgotten(index: IndexKind) -> None:
    rng = random.Random(10)
    texts = make_texts(rng, 600, words=60, longest=16)
    novelty, plain = NoveltyFilter(index=index), NoveltyFilter(index=index)
    for start in range(0, 600, 40):
        batch = texts[start : start + 40]
        verdicts = novelty.decide(batch)
        assert verdicts == plain.decide(batch)
        kept = [text for text, verdict in zip(batch, verdicts, strict=True) if verdict.novel][:-3]
        for cut in (kept[:2], kept[2:]):
            novelty.admit(cut)
        plain.add([*kept, "a text of its own"])
        novelty.add(["a text of its own"])
        assert len(novelty) == len(plain)


def test_adding_nothing_does_not_build_the_index() -> None:
    novelty = NoveltyFilter(index="exact")
    novelty.add_seeds(["Write a poem."])
    novelty.add([])
    novelty.admit([])
    assert novelty.memory_bytes() == 0


def test_only_what_was_just_decided_is_admitted() -> None:
    novelty = NoveltyFilter(index="exact")
    novelty.decide(["Write a poem.", "Explain how tides work."])
    for texts in (["Explain how tides work."], ["Write a poem.", "Sort a list.", "More."]):
        with pytest.raises(ValueError, match="last decision"):
            novelty.admit(texts)
    novelty.admit(["Write a poem."])
    novelty.decide(["Explain how tides work."])
    assert len(novelty) == 1
    novelty.add(["Something else."])
    with pytest.raises(ValueError, match="last decision"):
        novelty.admit(["Explain how tides work."])


@pytest.mark.parametrize("index", INDEX_KINDS)
def test_looking_up_compares_each_text_with_the_pool_alone(index: IndexKind) -> None:
    novelty = NoveltyFilter(index=index)
    novelty.add_seeds(["Name three rivers in Asia."])
    twins = ["Explain how tides work.", "Explain how tides work.", "name THREE rivers in asia"]
    assert [verdict.novel for verdict in novelty.look_up(twins)] == [True, True, False]
    assert len(novelty) == 1


@pytest.mark.parametrize("index", INDEX_KINDS)
def test_a_replayed_pool_decides_as_the_one_that_grew(index: IndexKind) -> None:
    rng = random.Random(7)
    seeds, texts = make_texts(rng, 9, words=60, longest=16), make_texts(rng, 900, words=60, longest=16)
    grown, replayed = NoveltyFilter(index=index), NoveltyFilter(index=index)
    grown.add_seeds(seeds)
    replayed.add_seeds(seeds)
    verdicts = grown.filter(texts[:800])
    replayed.add([text for text, verdict in zip(texts, verdicts, strict=False) if verdict.novel])
    assert len(replayed) == len(grown)
    assert replayed.filter(texts[800:]) == grown.filter(texts[800:])


@pytest.mark.parametrize("index", INDEX_KINDS)
def test_a_text_kept_earlier_in_the_same_batch_counts_under_its_coming_index(index: IndexKind) -> None:
    novelty = NoveltyFilter(index=index)
    novelty.add_seeds(["Name three rivers in Asia."])
    first, second, third = novelty.decide(["Write a poem.", "Explain how tides work.", "Explain how tides work!"])
    assert first.novel
    assert second.novel
    assert (third.novel, third.neighbour, third.score) == (False, 2, 1.0)


@pytest.mark.parametrize("index", INDEX_KINDS)
@pytest.mark.parametrize("text", ["", "?!", "\x00", "\ud800", "翻訳"])
def test_texts_without_tokens_are_novel_and_never_a_neighbour(index: IndexKind, text: str) -> None:
    novelty = NoveltyFilter(index=index, tokenizer="rouge")
    novelty.add_seeds(["a b c", text])
    assert novelty.filter([text, text]) == [Verdict(novel=True, nearest_seed=(0, 0.0))] * 2
    assert len(novelty) == 4


@pytest.mark.parametrize("index", INDEX_KINDS)
def test_other_scripts_are_compared_under_the_unicode_tokenizer(index: IndexKind) -> None:
    novelty = NoveltyFilter(index=index)
    verdicts = novelty.filter(["请写一首关于大海的短诗", "请写一首关于大海的小诗", "Ｗrite Ａ poem", "write a POEM"])
    assert [verdict.novel for verdict in verdicts] == [True, False, True, False]


def test_a_megabyte_of_text_is_decided() -> None:
    words = " ".join(f"word{i}" for i in range(40_000))
    verdicts = NoveltyFilter(index="exact").filter([words, "short one", words])
    assert [verdict.novel for verdict in verdicts] == [True, True, False]
    assert verdicts[2].score == 1.0


def test_a_seed_that_the_lsh_bands_miss_still_rejects() -> None:
    novelty = NoveltyFilter(index="lsh", lsh_bands=1, lsh_rows=16)
    seeds = make_texts(random.Random(8), 40, words=500, longest=30)
    novelty.add_seeds(seeds)
    near = [f"{seed} zzz" for seed in seeds if len(seed.split()) > 3]
    assert not any(verdict.novel for verdict in novelty.decide(near))


def test_seeds_after_other_texts_are_refused() -> None:
    novelty = NoveltyFilter(index="exhaustive")
    novelty.add(["a b c d"])
    with pytest.raises(InputError, match="add every seed first"):
        novelty.add_seeds(["e f g h"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 0.0}, "threshold 0.0"),
        ({"reject_at": "above"}, "reject-at"),
        ({"tokenizer": "words"}, "tokenizer"),
        ({"index": "faiss"}, "unknown index 'faiss'"),
        ({"lsh_recall": 1.5}, "LSH recall 1.5"),
        ({"lsh_bands": 4}, "give both"),
        ({"record_top_k": -1}, "record_top_k -1"),
        ({"lsh_bands": 4, "lsh_rows": 99}, "rows 1 to 16"),
    ],
)
def test_a_bad_parameter_is_one_clear_line(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        NoveltyFilter(**options)  # type: ignore[arg-type]  # the wrong values are the test
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("index", INDEX_KINDS)
def test_a_filter_runs_in_a_worker_thread_and_reports_its_memory(index: IndexKind) -> None:
    warm_up(index)
    novelty = NoveltyFilter(index=index)
    texts = make_texts(random.Random(9), 400, words=5000, longest=20)
    before = novelty.memory_bytes()
    worker = threading.Thread(target=novelty.filter, args=(texts,))
    worker.start()
    worker.join()
    assert len(novelty) > 100
    assert novelty.memory_bytes() > before


@pytest.mark.parametrize("index", INDEX_KINDS)
@pytest.mark.parametrize(("words", "longest"), [(6, 12), (40, 20), (300, 130)])
def test_the_recorded_top_k_is_the_whole_pools_and_changes_no_decision(
    index: IndexKind, words: int, longest: int
) -> None:
    rng = random.Random(11)
    seeds = make_texts(rng, 5, words=words, longest=longest)
    texts = make_texts(rng, 150, words=words, longest=longest)
    plain, recording = NoveltyFilter(index=index), NoveltyFilter(index=index, record_top_k=7)
    plain.add_seeds(seeds)
    recording.add_seeds(seeds)
    pool = [tokenise(seed) for seed in seeds]
    for start in range(0, 150, 40):
        cut = texts[start : start + 40]
        verdicts = recording.filter(cut)
        assert [v.novel for v in verdicts] == [v.novel for v in plain.filter(cut)]
        for text, verdict in zip(cut, verdicts, strict=True):
            if verdict.novel:
                tokens = tokenise(text)
                scored = sorted((-rouge_l_f1(other, tokens), at) for at, other in enumerate(pool))
                assert verdict.nearest_checked == tuple((at, -score) for score, at in scored[:7] if score < 0)
                pool.append(tokens)


def test_importing_the_filter_loads_neither_numba_nor_numpy() -> None:
    code = "import sys, fastgen.similarity.novelty; print('numba' in sys.modules or 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_an_index_that_is_taken_over_while_another_is_prepared_stays() -> None:
    saved = NoveltyFilter(index="exact")
    saved.add_seeds(["Name three rivers in Asia."])
    saved.add(["Explain how the tides of the sea work in winter."])
    novelty = NoveltyFilter(index="exact")
    novelty.add_seeds(["Name three rivers in Asia."])
    preparing, taken = threading.Event(), threading.Event()
    make = novelty._make_index

    def slow_make() -> CandidateIndex:
        preparing.set()
        taken.wait(timeout=0.2)
        return make()

    novelty._make_index = slow_make  # type: ignore[assignment]  # a partial otherwise
    prepare = threading.Thread(target=novelty.prepare)
    prepare.start()
    assert preparing.wait(timeout=30)
    novelty.take_over(saved._index)
    taken.set()
    prepare.join(timeout=30)
    assert not novelty.decide(["Explain how the tides of the sea work in summer."])[0].novel
