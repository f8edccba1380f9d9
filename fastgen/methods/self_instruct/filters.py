"""The rules for one instruction: each a named predicate, asked in order.

The first rule that rejects names the rejection, in the order of Self-Instruct (Wang et al., ACL 2023), so that a
ledger of rejections can be compared with the original's. All of them are pure, deterministic and linear in the text.

The larger part of the file is the rule for media requests. It rejects an instruction that asks a text model to make
or look at a picture, file, recording or web page: a verb with such a thing as its object ("Create a bar chart", "watch
the video"), or a thing that ought to be there and is not ("the attached file", "in the picture", "this map"). An
instruction that only mentions one passes: "Explain the plot of Hamlet", "Write a caption for a photo of a harbour".
A language is a table of words: verbs that make, verbs that look, the things, and how the language points at something.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Callable
from functools import cached_property, lru_cache
from math import ceil
from typing import Final

from fastgen.methods.self_instruct.rules import Rules

_PUNCTUATION: Final = frozenset(string.punctuation)
_OPENERS: Final = frozenset({"Ps", "Pi"})  # brackets and quotation marks that open
_CLOSED_BY: Final = {'"': '"', "'": "'", "\u00bb": "\u00ab", "\u203a": "\u2039", "\u201d": "\u201d", "\u2019": "\u2019"}
"""Quotation marks that open a quotation only where the other one follows: straight, German »…«, Swedish ”…”."""
_INVERTED: Final = frozenset("¿¡")  # category Po, but where a Spanish sentence starts


def check_instruction(text: str, rules: Rules) -> str | None:
    """Return the name of the first rule that rejects ``text`` (whitespace already collapsed), or ``None``."""
    for name, rejects in INSTRUCTION_RULES:
        if rejects(text, rules):
            return name
    return None


def empty(text: str, _rules: Rules) -> bool:
    """Reject what is nothing but whitespace."""
    return not text or text.isspace()


def too_short(text: str, rules: Rules) -> bool:
    """Reject fewer words than ``min_words``."""
    return count_words(text, rules) < rules.min_words


def too_long(text: str, rules: Rules) -> bool:
    """Reject more words than ``max_words`` or more characters than ``max_characters``."""
    if 0 < rules.max_characters < len(text):
        return True
    # A word takes at least one character, so most texts need no second count.
    return len(text) > rules.max_words and count_words(text, rules) > rules.max_words


def banned_word(text: str, rules: Rules) -> bool:
    """Reject a banned word or phrase as a whole word, in any case."""
    pattern, hints = _banned(rules.banned_words)
    if hints is not None and not _FOLDS_TO_ASCII.search(text):
        lowered = text.lower()
        if not any(hint in lowered for hint in hints):
            return False
    return pattern.search(text) is not None


def media_request(text: str, rules: Rules) -> bool:
    """Reject a request for a picture, a file, a recording or a visit to a page (``reject_media_requests``)."""
    return rules.reject_media_requests and _asks_for_media(text)


def banned_start(text: str, rules: Rules) -> bool:
    """Reject a banned beginning, in any case."""
    return text.lower().startswith(_lowered(rules.banned_starts))


def punctuation_start(text: str, rules: Rules) -> bool:
    """Reject punctuation as the first character.

    ``ascii``: ASCII punctuation. ``unicode``: also that of other scripts, except what a sentence may open with:
    brackets, opening quotation marks, "¿" and "¡". ``symbols``: whatever is no letter and no digit, except what a
    sentence may open with, in ASCII too. A mark that opens and closes alike has to be closed.
    """
    first = text[0]
    if rules.punctuation_start == "off":
        return False
    if rules.punctuation_start == "symbols":
        return not (first.isalnum() or _opens(text))
    if first in _PUNCTUATION:
        return True
    if rules.punctuation_start == "ascii" or first.isalnum() or first in _INVERTED:
        return False
    category = unicodedata.category(first)
    return category.startswith("P") and category not in _OPENERS


def _opens(text: str) -> bool:
    """Whether the first character opens a quotation, a bracket, or a Spanish sentence."""
    first = text[0]
    if first in _CLOSED_BY:
        return _CLOSED_BY[first] in text[1:]
    return first in _INVERTED or unicodedata.category(first) in _OPENERS


def non_ascii_start(text: str, rules: Rules) -> bool:
    """Reject a first character that is not ASCII (``reject_non_ascii_start``)."""
    return rules.reject_non_ascii_start and not text[0].isascii()


INSTRUCTION_RULES: Final[tuple[tuple[str, Callable[[str, Rules], bool]], ...]] = tuple(
    (rule.__name__, rule)
    for rule in (
        *(empty, too_short, too_long, banned_word, media_request),
        *(banned_start, punctuation_start, non_ascii_start),
    )
)
"""The rules by their names in the ledger, in the order in which they are asked."""


# -- words and banned words --------------------------------------------------------------------------------------------

# Scripts written without spaces: a Chinese or Japanese word has about two characters, one of the others four letters.
_HAN_KANA: Final = (
    "\u3005-\u3007\u3021-\u3029\u3040-\u30fa\u30fc-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\uff66-\uff9f\U00020000-\U000323af"
)
_SOUTHEAST_ASIAN: Final = (
    "\u0e01-\u0e4e\u0e81-\u0ecd\u0edc-\u0edf\u1000-\u103f\u1050-\u109d\u1780-\u17d3\ua9e0-\ua9fe\uaa60-\uaa7f"
)
_HAN_KANA_PER_WORD: Final = 2
_LETTERS_PER_WORD: Final = 4
_HAN_KANA_RUN: Final = re.compile(f"[{_HAN_KANA}]+")
_SOUTHEAST_ASIAN_RUN: Final = re.compile(f"[{_SOUTHEAST_ASIAN}]+")
_UNSPACED_RUN: Final = re.compile(f"[{_HAN_KANA}{_SOUTHEAST_ASIAN}]+")
_WIDE_PUNCTUATION: Final = re.compile(
    "[\u2013-\u2027\u3001-\u3003\u3008-\u3020\u3030\u30fb\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65]+"
)
_FOLDS_TO_ASCII: Final = re.compile("[\u0130\u0131\u017f\u212a]")  # match i, s, k in any case, unlike their lower()


def count_words(text: str, rules: Rules) -> int:
    """Return the number of words in ``text``.

    Words are separated by whitespace. With ``word_count="any_script"``, scripts without spaces are counted apart: two
    Han or Kana characters make a word, and so do four letters or marks of Thai, Lao, Khmer or Burmese (both rounded up
    over the text); punctuation next to them does not count. On a text without those scripts both counts agree.
    """
    if text.isascii() or rules.word_count == "whitespace" or not _UNSPACED_RUN.search(text):
        return len(text.split())
    han_kana = sum(map(len, _HAN_KANA_RUN.findall(text)))
    letters = sum(map(len, _SOUTHEAST_ASIAN_RUN.findall(text)))
    spaced = _UNSPACED_RUN.sub(" ", _WIDE_PUNCTUATION.sub(" ", text))
    return len(spaced.split()) + ceil(han_kana / _HAN_KANA_PER_WORD) + ceil(letters / _LETTERS_PER_WORD)


@lru_cache(maxsize=16)
def _lowered(starts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(start.lower() for start in starts)


@lru_cache(maxsize=16)
def _banned(words: tuple[str, ...]) -> tuple[re.Pattern[str], tuple[str, ...] | None]:
    """Return one pattern for all ``words``, and hints: lower-cased texts, one of which is in every text that matches.

    Searching hints is several times as fast as the pattern and settles most texts. They are ``None`` where lower-casing
    and case-insensitive matching may differ.
    """
    if not words:
        return re.compile(r"(?!)"), ()
    pattern = re.compile("|".join(map(_whole_word, words)), re.IGNORECASE)
    if not all(word.isascii() for word in words):
        return pattern, None
    lowered = {word.lower() for word in words}
    return pattern, tuple(word for word in lowered if not any(other in word for other in lowered - {word}))


def _whole_word(word: str) -> str:
    """Return a pattern for ``word`` on its own. An end in a script without spaces may adjoin anything."""
    before = "" if _UNSPACED_RUN.match(word[0]) else r"(?<!\w)"
    after = "" if _UNSPACED_RUN.match(word[-1]) else r"(?!\w)"
    return f"{before}{re.escape(word)}{after}"


# -- media requests ----------------------------------------------------------------------------------------------------

_HEAD_OF_WORD: Final = re.compile(r"(?<!\w)\w{3,6}")


class _Language:
    """The requests of one language: any of the ``patterns``, unless the text also matches ``but``.

    A text that matches holds one of the ``hints`` (words, or beginnings of words of up to six letters), so that most
    texts are decided without the pattern.
    """

    def __init__(self, hints: str, *patterns: str, but: re.Pattern[str] | None = None) -> None:
        self.hints = frozenset(hints.split()) | {f"{hint}s" for hint in hints.split()}
        self._patterns = patterns
        self._but = but

    @cached_property
    def _pattern(self) -> re.Pattern[str]:  # compiled when a text first has a hint: all of them would delay the start
        return re.compile("|".join(self._patterns), re.IGNORECASE | re.VERBOSE)

    def finds_a_request(self, text: str) -> bool:
        return self._pattern.search(text) is not None and (self._but is None or self._but.search(text) is None)


def _asks_for_media(text: str) -> bool:
    lowered = text.lower()
    heads = _HEAD_OF_WORD.findall(lowered)
    if not _ALL_HEADS.isdisjoint(heads):
        for language in _BY_WORDS:
            if not language.hints.isdisjoint(heads) and language.finds_a_request(text):
                return True
    if text.isascii():
        return False
    return any(any(map(lowered.__contains__, one.hints)) and one.finds_a_request(text) for one in _BY_TEXTS)


_EN_PICTURE: Final = (
    "image|picture|photo|photograph|screenshot|graph|chart|diagram|flow-?chart|histogram|scatter[ ]?plot|infographic"
    "|drawing|sketch|map"
)
_EN_RECORDING: Final = "video|video[ ]clip|audio|audio[ ]clip|audio[ ]file|recording|podcast|animation"
_EN_THING: Final = rf"(?:{_EN_PICTURE}|{_EN_RECORDING}|files?|pdf|spreadsheet|gif|meme|logo)s?"
# "image caption", "file name", "graph theory": the thing only says of what kind the next word is.
_EN_HEAD: Final = r"""(?![ -](?:captions?|captioned|descriptions?|titles?|scripts?|names?|naming|formats?|systems?
    |types?|extensions?|games?|ideas?|editor|editing|books?|frames?|theory|structure|database|algorithms?|prompts?
    |quality|processing|classification|recognition|compression|sharing|permissions?|paths?|topic|concept|essay|outlet
    |pack|out\b|of[ ](?:speech|argument)|whose|who)\b | ['’]s\b)(?!\w)"""
# Between a verb and its object stand articles and adjectives, but no word that begins another phrase or thing.
_EN_STOP: Final = r"""(?!(?:for|about|of|to|that|which|from|with|on|in|by|as|using|and|or|explaining|describing|titled
    |is|are|script|scripts|caption|captions|description|title|story|poem|list|prompt|character|comedy|table
    |biographical|biography)\b)"""
_EN_BETWEEN: Final = rf"(?:[ ]{_EN_STOP}[\w'’-]++){{0,4}}?[ ]"
_EN_TOLD: Final = r"""(?:^|[.!?:;,"“(][ ]?|\b(?:and|then|please|must|should|(?:can|could|will|would)[ ]you|(?:asked
    |need|have|required|want[ ]you|like[ ]you)[ ]to)[ ])"""
_EN_CODE: Final = re.compile(
    r"\b(?:script|functions? (?:that|to|which|in)|program|programme|code|command|python|bash|shell|java"
    r"|javascript|php|html|css|sql|c\+\+|c#"
    r"|algorithm|regex|api|library|software|unix|linux)\b",
    re.IGNORECASE,
)
"""A text with one of these words asks for code, whatever the code does with files and pictures."""
_EN: Final = _Language(
    "image pictur photo photog screen graph chart diagra flow flowch histog scatte plot infogr draw drawin sketch"
    " doodle map video audio record podcas animat file pdf spread gif meme logo websit webpag web homepa link"
    " url http www",
    # make or change one
    rf"""{_EN_TOLD}(?:create|make|generate|produce|design|draw|sketch|paint|plot|build|develop|record|film|shoot|edit
    |upload|download|attach|save|send|export|open|insert|embed|share|post|show|display|provide|add|play|take|crop
    |resize|print|rename|delete|copy|compress|convert|scan){_EN_BETWEEN}{_EN_THING}{_EN_HEAD}""",
    # look at one
    rf"""\b(?:look(?:ing)?[ ]at|watch|listen[ ]to|view|describe|explain|analy[sz]e|interpret|summari[sz]e|caption
    |label|identify|examine|inspect|study|read|see|use|using|transcribe|translate|review|count|classify)[ ](?:the|this
    |these|that|those|each|following)[ ](?:(?!of\b)[\w-]++[ ]){{0,2}}?{_EN_THING}{_EN_HEAD}(?![ ]of\b)""",
    # one that ought to be there
    rf"""\b(?:this|these|following|attached|above|below|accompanying|provided|uploaded
    |given)[ ](?:[\w-]++[ ])?{_EN_THING}{_EN_HEAD}""",
    rf"""\b(?:in|from|on|by)[ ]the[ ](?:{_EN_PICTURE}|{_EN_RECORDING})s?{_EN_HEAD}(?![ ]of\b)""",
    rf"""\bthe[ ](?:{_EN_PICTURE}|{_EN_RECORDING})s?[ ](?:shows?|below|above|depicts?|provided|attached)\b""",
    rf"""\bwhat[ ](?:the|this|an?)[ ](?:{_EN_PICTURE}|{_EN_RECORDING})[ ](?:shows?|depicts?)\b""",
    # draw and plot, but not a conclusion or the like
    rf"""{_EN_TOLD}(?:draw|sketch|doodle)(?:[ ]me)?[ ](?:an?|the|your|some|it|two|three|four|five|one|this|what
    |how)\b(?![ ](?:\w++[ ]){{0,2}}?(?:conclusions?|inferences?|comparisons?|parallels?|distinctions?|lessons?
    |attention|analog(?:y|ies)|connections?|links?|lines?|inspiration|contrasts?|curtains?|blood|bath|breath|crowd
    |implications?|correlations?|sword|cards?|number|name|winner|marbles?|balls?|differences?|readers?|most|best
    |outlines?|plans?|scenes?|characters?)\b)""",
    rf"""{_EN_TOLD}plot[ ](?:the|this|these|a|an|your)(?![ ](?:\w++[ ])?(?:of|twist|line|point|outline|summary|story
    |against|murder|escape|revenge|coup|course|hole)\b)""",
    # pages
    r"""\b(?:go[ ]to|visit|open|browse|access|click(?:[ ]on)?|navigate[ ]to|check(?:[ ]out)?|follow)[ ](?:(?:the|this
    |that|these|your|our|a|following|any)[ ])*+(?:[\w-]++[ ]){0,1}?(?:https?:|www\.|web[ ]?sites?\b|web[ ]?pages?\b
    |home[ ]?page\b|links?\b|urls?\b)""",
    but=_EN_CODE,
)
_DE_THING: Final = (
    "bild(?:er|s|ern)?|fotos?|fotografien?|grafik(?:en)?|graph(?:en)?|diagramme?|schaubild|karte|landkarte"
    "|zeichnung(?:en)?"
    "|skizze|videos?|audio(?:datei)?|aufnahmen?|datei(?:en)?|pdf|tabelle[ ]als[ ]datei|infografik|logo|screenshots?"
)
_DE: Final = _Language(
    "bild bilder foto fotogr grafik graph graphe diagra schaub karte landka zeichn skizze skizzi video audio audiod"
    " aufnah datei dateie pdf tabell infogr logo screen male malen websit websei link url http www",
    rf"""\b(?:erstelle|erstellen|mache?|erzeuge|generiere|produziere|zeige?|speichere|öffne|lade|sende|schicke
    |gestalte|entwirf|füge|nimm|drehe?|exportiere|bearbeite|betrachte|beschreibe?n?|analysiere?n?|sieh|schau|höre?
    |erkläre|beschrifte)(?:\s(?:(?!über|für|von|zu|mit|um|auf|aus|in|und|oder|der|des|wie)\w++)){{0,4}}?(?:\s(?:die
    |dir|dieses|diese|das|ein|eine|einen|den))?+\s(?:{_DE_THING})\b""",
    r"""(?:^|[.!?:,]\s|\b(?:und|bitte)\s)(?:zeichnen?|malen?|skizzieren?)\s(?:mir\s|bitte\s)?(?:ein|eine|einen|das|den
    |die|mir)\b""",
    rf"""\b(?:auf|in|aus|zu|von|anhand|an)\s(?:dem|der|diesem|dieser|diesen|folgendem
    |folgender)\s(?:\w++en\s)?(?:{_DE_THING})\b""",
    rf"""\b(?:im|dieses|folgende[sn]?|angehängten?|beigefügten?|obige[sn]?)\s(?:{_DE_THING})\b""",
    r"""\b(?:besuchen?|öffnen?|gehen?\s(?:auf|zu)|klicken?\sauf|rufen?)\s(?:\w++\s){0,2}?(?:https?:|www\.|webs(?:ite
    |eite)|link|url)""",
)
_FR_THING: Final = (
    "images?|photos?|photographies?|dessins?|graphiques?|diagrammes?|schémas?|cartes?[ ](?:géographiques?|du"
    "|de[ ]la|des)|vidéos?"
    "|audios?|enregistrements?|fichiers?|pdf|logos?|captures?[ ]d['’]écran|infographies?"
)
_FR: Final = _Language(
    "image photo photog dessin graphi diagra schéma carte vidéo audio enregi fichie pdf logo captur infogr"
    " pein peigne peindr esquis site lien http www",
    rf"""\b(?:cré(?:e|ez|er)|fai(?:s|tes|re)|génér(?:e|ez|er)|produi(?:s|sez|re)|montr(?:e|ez|er)|affich(?:e|ez|er)
    |enregistr(?:e|ez|er)|ouvr(?:e|ez|ir)|télécharg(?:e|ez|er)|envoy(?:e|ez|er)|envoie|tournez?|conçoi(?:s|vez)
    |ajout(?:e|ez|er)|regard(?:e|ez|er)|écout(?:e|ez|er)|décri(?:s|vez|re)|analys(?:e|ez|er)|trac(?:e|ez
    |er))[ ](?:(?:moi|une?|des|les?|la|l['’]|cette|cet|ce|ces|belles?|petite?s?|simple
    |courte?)[ ]?){{0,3}}(?:{_FR_THING})\b(?![ ]de[ ](?:soi|marque))""",
    r"""(?:^|[.!?:,][ ]|\b(?:et|puis)[ ])(?:dessin(?:e|ez|er)|peins|peignez|esquiss(?:e|ez))[ ](?:-?moi[ ])?(?:une?
    |des|les?|la|l['’])""",
    rf"""\b(?:cette|ces|ce)[ ](?:{_FR_THING})\b|\b(?:sur|dans|d['’]après|à[ ]partir[ ]de)[ ](?:l['’]|la[ ]|le[ ]
    |cette[ ]|ce[ ])(?:{_FR_THING})\b""",
    rf"""\b(?:{_FR_THING})[ ](?:suivante?s?|ci-(?:dessous|jointe?|dessus)|jointe?s?)\b""",
    r"""\b(?:visit(?:e|ez|er)|consult(?:e|ez|er)|ouvr(?:e|ez)|all(?:ez|er)[ ]sur|cliqu(?:e|ez)[ ]sur
    |va[ ]sur)[ ](?:\w++[ ]){0,2}?(?:https?:|www\.|site|page[ ]web|lien)""",
)
_ES_THING: Final = (
    "im[aá]gen(?:es)?|fotos?|fotograf[ií]as?|dibujos?|gr[aá]fic[oa]s?|diagramas?|mapas?|v[ií]deos?|audios?"
    "|grabaci[oó]n(?:es)?"
    "|archivos?|ficheros?|pdf|logo(?:tipo)?s?|infograf[ií]as?|capturas?[ ]de[ ]pantalla"
)
_ES: Final = _Language(
    "imagen imágen foto fotogr dibuja dibuje dibujo gráfic grafic diagra mapa vídeo video audio grabac archiv ficher"
    " pdf logo logoti captur infogr pinta pinte pintar sitio página pagina enlace http www",
    rf"""\b(?:cre[ae]r?|haz|haga|hacer|gener[ae]r?|produ(?:ce|zca|cir)|mu[eé]str[ae](?:me)?|mostrar|dise[ñn][ae]r?
    |grab[ae]r?|abr[ea]|abrir|descarg(?:a|ue|ar)|env[ií][ae]r?|sub[ea]|guard[ae]r?|a[ñn]ad[ea]|mir[ae]r?|escuch[ae]r?
    |observ[ae]r?|describ[ea]|describir|analiz?[ac]e?r?)[ ](?:(?:una?|unos|unas|el|la|los|las|est[ea]|estos|estas
    |bonit[oa]|simple|breve|pequeñ[oa])[ ]){{0,3}}(?:{_ES_THING})\b""",
    r"""(?:^|[¡.!?:,][ ]?|\b(?:y|luego)[ ])(?:dibuj[ae](?:me)?|dibujar|pint[ae]|pintar)[ ](?:una?|el|la|los|las)\b""",
    rf"""\b(?:est[ea]|estos|estas)[ ](?:{_ES_THING})\b|\b(?:en|de|seg[uú]n)[ ](?:el|la|este
    |esta)[ ](?:{_ES_THING})\b(?![ ]de\b)""",
    rf"""\b(?:{_ES_THING})[ ](?:siguientes?|adjunt[oa]s?|anterior(?:es)?)\b|\bsiguientes?[ ](?:{_ES_THING})\b""",
    r"""\b(?:visit[ae]r?|abr[ea]|entr[ae][ ]en|ve[ ]a|vaya[ ]a|ir[ ]a|consult[ae]
    |haz[ ]clic[ ]en)[ ](?:\w++[ ]){0,2}?(?:https?:|www\.|sitio[ ]web|p[aá]gina[ ]web|enlace)""",
)
_RU_THING: Final = (
    "изображени[еяюий]\\w*|картин(?:а|у|ы|е|ку|ка|ки|ке|ок)|фото\\w*|рисун(?:ок|ка|ке|ки)|график(?:а|е|и|у|ом)?"
    "|диаграмм\\w+|схем[аыуе]"
    "|карт[ауые]|видео\\w*|аудио\\w*|запис[ьи]|файл\\w*|логотип\\w*|скриншот\\w*|инфографик\\w+"
)
_RU: Final = _Language(
    "изображ картин фото рисун рису график диаграмм схем карт видео аудио запис файл логотип скриншот инфограф сайт"
    " ссылк страниц http www. нарис начерт",
    rf"""\b(?:созда(?:й|йте|ть)|сдела(?:й|йте|ть)|сгенерир\w+|покаж\w+|построй(?:те)?|построить|сними(?:те)?
    |запиши(?:те)?|открой(?:те)?|скачай(?:те)?|загрузи(?:те)?|отправь(?:те)?|сохрани(?:те)?|посмотри(?:те)?
    |рассмотри(?:те)?|послушай(?:те)?|опиши(?:те)?|проанализируй(?:те)?|прикрепи(?:те)?)(?:[ ](?!о\b|об\b|для\b|про\b
    |из\b|с\b|по\b)\w++){{0,3}}?(?:[ ]на)?[ ](?:{_RU_THING})\b""",
    r"""\b(?:нарисуй|нарисуйте|нарисовать|начерти|начертите|рисуй)\b""",
    r"""\b(?:на|в|из|по)[ ](?:(?:этом|этой|данн\w+|приложенн\w+)[ ])?(?:изображении|картинке|картине|фотографии|фото
    |рисунке|графике|диаграмме|карте|видео|файле|файла)\b""",
    rf"""\b(?:эт[ауо]|этот|следующ\w+|приложенн\w+|прикрепл[её]нн\w+)[ ](?:{_RU_THING})\b""",
    r"""\b(?:зайди(?:те)?|перейди(?:те)?|посети(?:те)?|открой(?:те)?)[ ](?:\w++[ ]){0,3}?(?:https?:|www\.|сайт\w*
    |ссылк\w+|веб-?страниц\w+|страниц\w+)""",
)
_AR_THING: Final = (
    "(?:ال)?(?:صور[ةه]|صورا|صور|رسم[ا]?(?:ا)?[ ]?(?:بياني\\w*)?|مخطط\\w*|خريط[ةه]|خرائط|فيديو\\w*"
    "|مقطع(?:ا)?[ ](?:فيديو|صوتي\\w*)|تسجيل\\w*|ملف\\w*|شعارا?)"
)
_AR: Final = _Language(
    "صور رسم ارسم مخطط خريط خرائط فيديو مقطع تسجيل ملف شعار موقع رابط الرابط صفح http www.",
    rf"""(?<!\w)(?:[أا]نش[ئي]|[أا]نشاء|اصنع|صمم|ولّ?د|[أا]ظهر|اعرض|افتح|حمّ?ل|[أا]رسل|احفظ|سجّ?ل|شاهد|انظر[ ][إا]لى
    |استمع[ ][إا]لى|صف|حلّ?ل|[أا]رفق|قم[ ]ب[إا]نشاء|التقط)[ ](?:هذ[هاي][ ])?{_AR_THING}(?!\w)""",
    r"""(?<!\w)(?:ارسم|[أا]رسم|قم[ ]برسم)(?!\w)""",
    r"""(?<!\w)(?:في|من|على)[ ](?:هذ[هاي][ ])?ال(?:صور[ةه]|مخطط|خريط[ةه]|فيديو|ملف|رسم)(?!\w)
    |(?<!\w)هذ[هاي][ ]ال(?:صور[ةه]|مخطط|خريط[ةه]|فيديو|ملف|رسم)(?!\w)""",
    r"""(?<!\w)(?:زر|قم[ ]بزيارة|افتح|اذهب[ ][إا]لى|انقر)[ ](?:\w++[ ]){0,2}?(?:https?:|www\.|(?:ال)?(?:موقع|رابط
    |صفح[ةه]))""",
)
_ZH_THING: Final = (
    "(?:图片|图像|图画|图表|图形|流程图|示意图|思维导图|柱状图|饼图|折线图|曲线图|照片|相片|插图|插画|海报|截图|地图"
    "|视频|音频|录音|录像|动画|文件|附件|file|pdf|logo)"
)
_ZH: Final = _Language(
    "图 照片 相片 海报 视频 音频 录音 录像 动画 文件 附件 file pdf logo 画 网站 网页 链接 网址 http www.",
    # Not "描述如何保存文件", which asks for a description.
    r"(?<!如何)(?<!怎么)(?<!怎样)(?:创建|生成|制作|绘制|设计|画出|画|拍摄|拍|录制|上传|下载|保存|打开|发送|播放|展示|显示|提供"
    r"|插入|编辑|做)(?:了|一下|出)?(?:[一这那该两三]?[个张幅份段部条些]|某个)?(?:关于[^，。,.！？!?;；:：\s]{1,10}?的)?"
    rf"(?:[^，。,.！？!?;；:：\s的为关于并和]{{0,6}}的?)?{_ZH_THING}(?!名|格式|系统|说明|标题|脚本|描述|管理|里面?怎)",
    r"(?:观看|查看|看看?|看一?下?|收听|聆听|描述|分析|识别|解释|解读|阅读|根据|基于|使用|给|把|将|对)(?:一下)?"
    rf"(?:下面|以下|给定|提供|上面|下列)?的?(?:[这那该][个张幅份段部条些]?){_ZH_THING}",
    r"(?:下面|以下|给定|上面|上述|附加|附上|所附|下列|提供)的?(?:[一这那]?[个张幅份段部条些])?"
    rf"{_ZH_THING}(?!名|格式|类型|系统)",
    rf"{_ZH_THING}(?:中的|里的|上的|中有|里有|上有|所示|中显示|内的)",
    r"(?:^|[，。,！!]|请|帮我|给我|并|再)画(?!面|家|画|龙|蛇|上句号|等号)",
    r"(?:访问|打开|浏览|点击|进入)[^，。,.！？!?\s]{0,10}?(?:网站|网页|链接|网址|https?:|www\.)",
)
_JA_THING: Final = (
    "(?:画像|写真|イラスト|絵|図表|図|グラフ|チャート|フローチャート|地図|マップ|動画|ビデオ|音声|録音|音楽ファイル"
    "|アニメーション|ファイル|スクリーンショット|ロゴ|ポスター|pdf)"
)
_JA: Final = _Language(
    "画像 写真 イラスト 絵 図 グラフ チャート マップ 動画 ビデオ 音声 録音 アニメ ファイル スクリーン ロゴ ポスター pdf"
    " サイト ページ リンク url http www.",
    rf"(?:この|その|次の|以下の|添付の|添付された|上の|下の|与えられた|示された){_JA_THING}",
    rf"{_JA_THING}を(?:作成|作って|作り|作る|生成|描い|描き|描く|描写|書き出|撮影|撮って|録音|編集|アップロード"
    "|ダウンロード|保存|開い|開き|送|見て|見せ|聞い|聴い|表示|添付|デザイン|説明|分析|参照)",
    rf"{_JA_THING}(?:に写って|に描かれ|に示され|に映って|の中の|内の)",
    r"(?:サイト|ページ|リンク|url)(?:を|に|へ)(?:開い|訪問|訪れ|アクセス|クリック|閲覧|見て|参照)",
)
_BY_WORDS: Final = (_EN, _DE, _FR, _ES)
_ALL_HEADS: Final = frozenset().union(*(language.hints for language in _BY_WORDS))
_BY_TEXTS: Final = (_RU, _AR, _ZH, _JA)
