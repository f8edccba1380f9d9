"""Which language the seed tasks and the demonstrations are in, as far as a cheap look can tell.

Base models answer in the language of the demonstrations that they are shown, not in that of the task. So seed tasks in
one language and demonstrations in another give mixed data. `language_warning` says so before a run.

A text with mostly letters of a script that only one language uses is in that language. A text in Latin script is in the
language of which it has the most frequent words. A collection is in a language if most of its texts are recognised and
nearly all of those agree. Everything else counts as unknown: code, single words, a mixture of languages. No warning is
better than a wrong one.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from typing import TYPE_CHECKING, Final, get_args

from fastgen.methods.self_instruct.prompts import PromptLanguage

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from fastgen.methods.self_instruct.prompts import PromptSet
    from fastgen.types import SeedTask

NAMES: Final[Mapping[str, str]] = {
    "ar": "Arabic",
    "de": "German",
    "el": "Greek",
    "en": "English",
    "es": "Spanish",
    "fr": "French",
    "he": "Hebrew",
    "hi": "Hindi",
    "it": "Italian",
    "ja": "Japanese",
    "ko": "Korean",
    "nl": "Dutch",
    "pl": "Polish",
    "pt": "Portuguese",
    "ru": "Russian",
    "sv": "Swedish",
    "th": "Thai",
    "tr": "Turkish",
    "zh": "Chinese",
}
"""The languages that are recognised, by ISO 639-1 code. A script stands for its most frequent language."""

_SCRIPTS: Final[Mapping[str, str]] = {  # first word of the Unicode names of its letters
    "ARABIC": "ar",
    "CJK": "zh",
    "CYRILLIC": "ru",
    "DEVANAGARI": "hi",
    "GREEK": "el",
    "HANGUL": "ko",
    "HEBREW": "he",
    "HIRAGANA": "ja",
    "KATAKANA": "ja",
    "THAI": "th",
}
_SYLLABLES: Final = frozenset({"CJK", "HANGUL", "HIRAGANA", "KATAKANA"})
_LETTERS_OF_A_SYLLABLE: Final = 2  # so that a name of a function does not outweigh the sentence around it
# Words that most sentences of a language have, and few sentences of the others. Verbs that begin tasks are among them.
_FREQUENT: Final[Mapping[str, frozenset[str]]] = {
    code: frozenset(words.split())
    for code, words in {
        "en": "the and of to is with for that this from are what how which write explain each you your by my "
        "into if give one it not there sentence text list between translate summarize rewrite make",
        "de": "der die das und ist ein eine einen einem einer den dem des mit für von zu auf im nicht wie was "
        "welche welcher schreibe erkläre nenne satz aus sich oder bei deine dein zum zur du bitte sie "
        "übersetze fasse berechne ordne welches text",
        "fr": "le la les des et est une un du dans pour avec que qui sur par ce cette au aux écris rédige "
        "explique donne phrase quel quelle ou pas son sont plus deux votre traduis traduisez résume "
        "classe écrivez texte anglais français",
        "es": "el la los las es una un del para con que por en como qué cuál escribe explica al este esta se "
        "su sus dos frase oración lista más si sobre da traduce resume clasifica enumera calcula texto "
        "inglés español",
        "pt": "os é uma um da dos das para com que por em como qual escreva explique ao este esta "
        "não frase duas lista mais sobre na traduza resuma classifique calcule texto inglês português",
        "it": "il lo la gli le è una un del della dei delle per con che di come quale scrivi spiega al nel "
        "nella questo questa frase due elenco più non sono traduci riassumi classifica calcola testo "
        "inglese italiano",
        "nl": "de het een en is van voor met dat in op te hoe wat welke schrijf geef leg uit zin niet zijn deze "
        "dit naar door je of tussen vertaal noem vat tekst engels nederlands",
        "pl": "na jest się nie że jak który która napisz wyjaśnij podaj dla o oraz zdanie co tego tym "
        "po czy lub przetłumacz wymień opisz tekst angielski",
        "sv": "och att är en ett som för med på av till den det inte hur vad vilken skriv förklara ge mening "
        "från om eller mellan översätt nämn sammanfatta texten engelska",
        "tr": "ve bir bu için ile nedir hangi yaz cümle olan olarak ne mi da de listele veya daha metni çevir "
        "özetle cümleyi ingilizceye",
    }.items()
}
_WORD: Final = re.compile(r"[^\W\d_]+")
_MOST_TEXTS: Final = 400  # of a large collection; more do not change the result
_FEWEST: Final = 3
_RECOGNISED: Final = 0.5
_AGREEING: Final = 0.85


def language_of(texts: Sequence[str]) -> str | None:
    """Return the code (a key of `NAMES`) of the language that the texts are in, ``None`` where that is not clear.

    It is clear when at least three texts and at least half of them are recognised, and 85 % of those agree.
    """
    sample = texts[:: -(-len(texts) // _MOST_TEXTS) or 1]
    votes = Counter(filter(None, map(_language_of_one, sample)))
    if not votes or votes.total() < max(_FEWEST, _RECOGNISED * len(sample)):
        return None
    code, count = votes.most_common(1)[0]
    return code if count >= _AGREEING * votes.total() else None


def language_warning(seeds: Iterable[SeedTask], prompts: PromptSet) -> str | None:
    """Return one line about demonstrations in another language than the seed tasks, with what to do.

    ``None`` where the languages are the same, or one of them is not clear.
    """
    wanted = language_of([seed.instruction for seed in seeds])
    if wanted is None:
        return None
    found = {name: language_of(shown) for name, shown in prompts.shown.items()}
    others = {name: code for name, code in found.items() if code not in (None, wanted)}
    if not others:
        return None
    languages = " and ".join(sorted({NAMES[code] for code in others.values() if code}))
    remedy = f"write {NAMES[wanted]} ones with 'fastgen prompts init DIR --language {wanted}'"
    if wanted not in get_args(PromptLanguage):
        remedy = "write English ones with 'fastgen prompts init DIR' and translate them"
    return (
        f"the seed tasks are in {NAMES[wanted]}, but the demonstrations in {', '.join(sorted(others))} are in "
        f"{languages}, and models imitate them; {remedy}, then give --prompts DIR"
    )


def _language_of_one(text: str) -> str | None:
    scripts: Counter[str] = Counter()
    for letter in filter(str.isalpha, text):
        script = "LATIN" if letter.isascii() else unicodedata.name(letter, "?").split()[0]
        scripts[script] += _LETTERS_OF_A_SYLLABLE if script in _SYLLABLES else 1
    if not scripts:
        return None
    if scripts["HIRAGANA"] + scripts["KATAKANA"]:
        scripts["HIRAGANA"] += scripts.pop("KATAKANA", 0) + scripts.pop("CJK", 0)
    script = max(scripts, key=scripts.__getitem__)
    if script != "LATIN":
        return _SCRIPTS.get(script)
    words = [word.casefold() for word in _WORD.findall(text)]
    hits = sorted(((sum(word in known for word in words), code) for code, known in _FREQUENT.items()), reverse=True)
    (most, code), (second, _) = hits[:2]
    return code if most > second else None
