"""Instruction backtranslation: the instruction that a human text answers, and a score for the pair.

After Humpback (Li et al., "Self-Alignment with Instruction Backtranslation", ICLR 2024, arXiv 2308.06259). A text that
a person wrote is taken for the answer. The model writes the instruction for it (the paper's self-augmentation), then
rates the pair from 1 to 5 (its self-curation), and only pairs with a high score are kept. The paper trains a model of
its own for the first step, on reversed pairs of seed tasks. An instruct model does it when asked, and a base model is
shown such pairs.

Each document is used once, in the order of the file, or ``passes`` times. The number of a document, as a source, is its
index. In the second pass it is its index plus the number of documents, and `Method.documents` repeats them.

The output of a row is the whole document, but prompts show its beginning only, at most ``max_document`` tokens of
`CHARACTERS_PER_TOKEN` characters each. Everything here takes time linear in the texts, and nothing raises but `build`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from fastgen.methods.base import (
    Ask,
    Creation,
    Draw,
    Item,
    Labelled,
    Method,
    Prompt,
    Rejected,
    Setup,
    Step,
    StepOutcome,
    Subject,
)
from fastgen.methods.self_instruct import instruction
from fastgen.methods.self_instruct.fields import output_begins
from fastgen.methods.self_instruct.instruction import UNCLOSED_THINKING, UNFINISHED, item_number
from fastgen.methods.self_instruct.rules import PRESETS
from fastgen.methods.structured import read_records
from fastgen.text import (
    CLOSE,
    COLON,
    NOWHERE,
    OPEN,
    answer_span,
    is_chatter,
    is_closing,
    is_cut,
    lines,
    strip,
    trim,
    without_template_marks,
)
from fastgen.types import Completion, Message, Request, Sampling, SeedTask, Span

CHARACTERS_PER_TOKEN: Final = 4
"""What a token of a document is counted as. Scripts without spaces have fewer, so that their bound is lower."""
SHORTEST: Final = 200
"""Fewest characters of a document that is worth an instruction."""

_SAMPLING: Final = {
    "chat": {"instruction": Sampling(0.7, 0.9, 512), "score": Sampling(0.0, 1.0, 512)},
    "completions": {
        "instruction": Sampling(0.7, 0.9, 200, stop=("\nText:", "\n\n")),
        "score": Sampling(0.0, 1.0, 5, stop=("\n",)),
    },
}


# -- the method --------------------------------------------------------------------------------------------------------


def build(setup: Setup) -> Method:
    """Return the method of a run. ``setup.documents`` are those that `usable` accepts.

    Options: ``min_score`` (4; 1 to 5), ``max_document`` (2048 tokens shown), ``passes`` (1).

    :raises InputError: an option is no whole number in its range.
    """
    min_score = setup.number("min_score", 4, least=1, most=5)
    longest = CHARACTERS_PER_TOKEN * setup.number("max_document", 2048, least=64)
    documents = setup.documents
    sources = len(documents) * setup.number("passes", 1, least=1, most=100)
    sampling = _SAMPLING[setup.api]
    is_chat = setup.api == "chat"
    head = "" if is_chat else _completion_head(setup.seeds)

    def shown(source: int) -> str:
        text = without_template_marks(beginning(documents[source % len(documents)], longest))
        return text.replace("</text", "</ text")  # the mark at which the prompt says that the document ends

    def ask(draw: Draw) -> Ask | None:
        source = draw.unused()
        return Ask(_prompt(shown(source), head), (source,)) if source < sources else None

    def read(completion: Completion, request: Request) -> Sequence[Item]:
        source = request.demonstrations[0] if request.demonstrations else sources
        return read_instruction(completion, documents[source % len(documents)] if source < sources else "")

    def ask_for_score(subject: Subject) -> Ask:
        return Ask(_score_prompt(subject.text, shown(subject.sources[0]), is_chat=is_chat))

    def read_score(completion: Completion, _: Subject) -> StepOutcome:
        score = find_score(completion.text)
        if score is None:
            return Rejected(NO_SCORE)
        return Labelled(score) if score >= min_score else Rejected(LOW_SCORE, score)

    return Method(
        name="backtranslate",
        creation=Creation(
            sampling=sampling["instruction"],
            ask=ask,
            read=read,
            samples=setup.samples,
            has_sources=True,
            expected=0.8,
        ),
        steps=(Step(name="score", sampling=sampling["score"], ask=ask_for_score, read=read_score),),
        seeds=setup.seeds,
        check=setup.check,
        documents=documents if sources == len(documents) else tuple(documents) * (sources // len(documents)),
        seed=setup.seed,
    )


# -- documents ---------------------------------------------------------------------------------------------------------

_UNUSABLE: Final = re.compile("[\0\ud800-\udfff]")
_FEWEST_LETTERS: Final = 0.4
_ENDS: Final = ("\n\n", "\n", ". ", "。", " ")  # where a text may be cut, best first


def usable(document: str, shortest: int = SHORTEST) -> str | None:
    """Return why a document cannot be an output, in a few words, or ``None`` if it can.

    It has at least ``shortest`` characters without the blanks at its ends, no NUL and no lone surrogate, and at least
    two fifths of what is not blank are letters or digits.
    """
    if bad := _UNUSABLE.search(document):
        return f"holds U+{ord(bad[0]):04X}, which is no text"
    text = document.strip()
    if len(text) < shortest:
        return f"{len(text)} characters; at least {shortest} are needed"
    written = sum(map(str.isalnum, text))
    if written < _FEWEST_LETTERS * (len(text) - sum(map(str.isspace, text))):
        return "mostly signs, not letters"
    return None


def beginning(document: str, longest: int) -> str:
    """Return the document as prompts show it: all of it, or its first paragraphs and a line that says so.

    ``longest`` is the most characters of the document. Where no paragraph ends in the second half of them, the text is
    cut at the end of a line, a sentence or a word.
    """
    text = document.strip()
    if len(text) <= longest:
        return text
    cuts = (
        text.rfind(end, longest // 2, longest) + len(end.rstrip())
        for end in _ENDS
        if end in text[longest // 2 : longest]
    )
    return f"{text[: next(cuts, longest)].rstrip()}\n\n{_GOES_ON}"


# -- prompts -----------------------------------------------------------------------------------------------------------

_GOES_ON: Final = "[The text goes on. Only its beginning is shown here.]"
_SYSTEM: Final = """\
You get a text that a person wrote. Suppose that somebody asked an assistant for exactly this text. Write what they \
asked.

- Your instruction stands alone. Whoever reads it has never seen the text, so it does not speak of one: no "the text", \
"this article", "the passage", "above" or "below".
- Ask for what the text gives: its subject, its kind (an explanation, a story, advice, a list, a letter, code ...) \
and, where they stand out, its length, tone, reader or structure.
- Names, dates and experiences that only the writer knows belong into the instruction. What the text explains does not.
- Use your own words. Copy no sentence of the text.
- Write as people do who ask an assistant, in the language of the text: one question, or up to a few sentences.
- Answer with the instruction only: no title, no quotation marks, no remarks."""
_REQUEST: Final = "Write the instruction."
# Shown as earlier turns. Without them a small instruct model describes the text that it is shown ("This text answers
# ..."), whatever the system message says. A question at the end makes that worse.
_EXAMPLES: Final = (
    (
        """\
Bread goes stale because its starch changes. While it bakes, the starch takes up water and swells. As the loaf cools \
and lies, the starch gives the water back and turns hard again. That is why a stale slice that is toasted is soft for \
a short time: the heat undoes the change.""",
        "Why does bread go stale, and why does toasting a stale slice make it soft again for a while?",
    ),
    (
        """\
Dear Ms Okafor,

the two chairs arrived on Monday. One of them has a crack across the seat. Please send us another one, or tell us how \
we can return it. The order number is 4471.

Kind regards
Tom Lind""",
        (
            "Write a short email to Ms Okafor about the chairs of our order 4471: one of the two that came has a "
            "cracked seat, and we want another or want to return it. I am Tom Lind."
        ),
    ),
    (
        """\
- Water in the morning, so that leaves are dry by night.
- Pick off yellow leaves at once.
- Turn the pot a little every week.""",
        "Give me three short tips for keeping a potted plant healthy, as a list.",
    ),
)
_SCORE_SYSTEM: Final = """\
You judge pairs of an instruction and an answer. A good pair teaches an assistant how to answer. Rate the answer from \
1 to 5:

1: It does something else: another subject, an advertisement, the menu of a web page, a fragment.
2: It touches what was asked, but most of that is missing, or most of the answer is about something else.
3: It gives what was asked in the main, but was written for another occasion: a page of a web site, a post in a forum, \
with parts that do not belong to an answer.
4: It gives all that was asked, in good order and written as an answer. Small things could be better: it is a little \
long, or leaves the subject once.
5: A knowledgeable assistant could not do better: right, complete, clear, and every sentence serves the instruction.

Give your reason in one or two sentences. Then write a last line of this form, with your number:
Score: 3"""
_SCORE_REQUEST: Final = """\
How well does this answer do what its instruction asks? Give your reason in one or two sentences. Then end with the \
line "Score: N", where N is a number from 1 to 5."""
"""Said again after the pair: a small model that has read a long text continues the text instead of rating it."""
_COMPLETION_HEAD: Final = "Texts, each with the instruction that it answers.\n\n"
_SCORE_HEAD: Final = """\
How well does an answer do what its instruction asks, on a scale from 1 (not at all) to 5 (perfectly)?

"""
_MOST_PAIRS: Final = 3
_PAIR_OUTPUT: Final = (100, 1500)  # characters: shorter ones are no documents, longer ones leave no room


def _prompt(document: str, head: str) -> Prompt:
    """Return the prompt about a document. A base model's begins with ``head``, an instruct model's has none."""
    if head:
        return f"{head}Text:\n{document}\nInstruction:"
    shown = [message for text, asked in _EXAMPLES for message in (_shown(text), Message("assistant", asked))]
    return (Message("system", _SYSTEM), *shown, _shown(document))


def _shown(document: str) -> Message:
    return Message("user", f"<text>\n{document}\n</text>\n\n{_REQUEST}")


def _completion_head(seeds: Sequence[SeedTask]) -> str:
    """Return what a base model is shown: seed tasks without an input, their outputs first."""
    least, most = _PAIR_OUTPUT
    pairs = [
        (task.instances[0].output.strip(), " ".join(task.instruction.split()))
        for task in seeds
        if not task.instances[0].input.strip() and least <= len(task.instances[0].output.strip()) <= most
    ]
    shown = "".join(f"Text:\n{output}\nInstruction: {text}\n\n" for output, text in pairs[:_MOST_PAIRS])
    return _COMPLETION_HEAD + shown


def _score_prompt(text: str, document: str, *, is_chat: bool) -> Prompt:
    pair = f"Instruction:\n{text}\n\nAnswer:\n{document}"
    if not is_chat:
        return f"{_SCORE_HEAD}{pair}\n\nScore (1 to 5):"
    return (Message("system", _SCORE_SYSTEM), Message("user", f"{pair}\n\n{_SCORE_REQUEST}"))


# -- reading an instruction --------------------------------------------------------------------------------------------

MENTIONS_DOCUMENT: Final = "mentions_document"
"""The rule that rejects an instruction that speaks of a text which its reader does not have."""
DESCRIBES_INSTRUCTION: Final = "describes_instruction"
"""The rule that rejects a sentence about the instruction, or about the text, in place of the instruction."""
COPIES_DOCUMENT: Final = "copies_document"
"""The rule that rejects an instruction that is copied from its document in good part."""
_RULES: Final = PRESETS["default"]
_NAMES: Final = ("instruction", "prompt", "question", "task", "request", "query")
_LABEL: Final = (
    r"(?:(?:the|here\ is|here['\u2019]s)[ ](?:an?[ ]|the[ ])?)?(?:[\w-]+[ ])?(?:instruction|prompt|question|task"
    r"|request|query|user|aufgabe|anweisung|frage|consigne|instrucci[oó]n|tarea|pregunta|инструкция|задание|вопрос"
    r"|指令|任务|问题|指示|質問|التعليمات|السؤال)"
)
_LABELLED: Final = re.compile(rf"{OPEN}{_LABEL}{CLOSE}[ \t]*+{COLON}{CLOSE}[ \t]*+", re.IGNORECASE | re.VERBOSE)
_LABEL_LINE: Final = re.compile(rf"(?:\#++[ \t]++|\*\*){_LABEL}(?:\*\*)?[ \t\r]*+$", re.IGNORECASE | re.VERBOSE)
_INLINE_LABEL: Final = re.compile(
    rf"[^\n:\uff1a]{{0,60}}?\b{_LABEL}[^\n:\uff1a]{{0,40}}{COLON}[ \t]++(?=\S)", re.IGNORECASE | re.VERBOSE
)
_SAID_LABEL: Final = re.compile(  # "The text answers the question: ...", "The instruction would be: ..."
    rf"""[ \t"'*_]*+(?:
        (?:the|this)[ ](?:text|passage|document|article|story|answer)[ ]
          (?:answers|is[ ](?:an?|the)[ ]answer[ ]to|responds[ ]to|fits)[ ]
          (?:(?:the|this|an?)[ ])?(?:following[ ])?{_LABEL}
        | {_LABEL}[ ](?:[\w'-]+[ ]){{0,5}}?(?:is|was|(?:would|could|might|may)[ ](?:be|have[ ]been))
    )[ \t*_]*+{COLON}[ \t*_]*+(?=\S)""",
    re.IGNORECASE | re.VERBOSE,
)
_SHORT: Final = 3  # words of an opening line that is chatter and nothing else
_REMARK: Final = re.compile(
    rf"""[ \t>*_(\[]*+(?:(?:note|explanation|reason(?:ing)?|rationale|justification|text|answer|hinweis|begründung
    |remarque|explication|nota|explicación|примечание|пояснение|说明|注|解释|解説|理由)\b[^\n:\uff1a]{{0,20}}{COLON}
    |this[ ](?:instruction|prompt|question|task)\b | [-*_=]{{3,}}[ \t\r]*+$)""",
    re.IGNORECASE | re.VERBOSE,
)


def read_instruction(completion: Completion, document: str) -> list[Item]:
    """Return the instruction of a completion, or nothing where it has no text.

    The rules, in order: ``unclosed_thinking``, ``unfinished``, `MENTIONS_DOCUMENT`, `DESCRIBES_INSTRUCTION`,
    `COPIES_DOCUMENT`.
    """
    text = completion.text
    answer = answer_span(text)
    if answer is None:
        return [_item(text, strip(text, 0, len(text)), UNCLOSED_THINKING)]
    span = _find_instruction(text, trim(text, *answer))
    if span == NOWHERE:
        return []
    if is_cut(completion) and span[1] >= len(text.rstrip()):
        return [_item(text, span, UNFINISHED)]
    written = text[slice(*span)]
    if mentions_document(written):
        return [_item(text, span, MENTIONS_DOCUMENT)]
    if _DESCRIBES.match(written):
        return [_item(text, span, DESCRIBES_INSTRUCTION)]
    return [_item(text, span, COPIES_DOCUMENT if copies(written, document) else None)]


def _item(text: str, span: Span, rule: str | None) -> Item:
    return Item(span, text[slice(*span)].strip(), rule)


def _find_instruction(text: str, answer: Span) -> Span:
    if answer == NOWHERE:
        return NOWHERE
    if text.startswith(("{", "[{", '["', "```json"), answer[0]):
        records = read_records(text, answer)
        found = (record[name] for record in records for name in (*_NAMES, "") if name in record)
        return next(found, NOWHERE)
    start, end = _after_opening(text, answer)
    first = next(lines(text, start, end))
    begin = item_number(text, first)
    if (
        begin is not None
        and begin[0] == 1
        and (listed := instruction.parse(Completion(text, "stop"), _RULES, first_number=1))
    ):
        return next((one.span for one in listed if one.span[0] >= start), NOWHERE)
    after_blank = False
    for number, line in enumerate(lines(text, start, end)):
        ends = output_begins(text, line) or is_closing(text, *line) or (after_blank and _REMARK.match(text, *line))
        if number and ends:
            end = line[0]
            break
        after_blank = not text[slice(*line)].strip()
    span = instruction.unwrap(text, (start, end))
    return NOWHERE if text[slice(*span)].isspace() else span


def _after_opening(text: str, answer: Span) -> Span:
    """Return the answer without an opening that speaks to the reader, and without a label of the instruction."""
    start, end = answer
    for _ in range(3):  # "Sure!", "Here is the instruction:", "**Instruction:**"
        line = next(lines(text, start, end))
        written = text[slice(*line)].strip()
        chatty = is_chatter(text, *line)
        is_opening = chatty and (written.endswith((":", "\uff1a", ":**")) or len(written.split()) <= _SHORT)
        label = _LABELLED.match(text, *line) or _SAID_LABEL.match(text, *line)
        label = label or (_INLINE_LABEL.match(text, *line) if chatty else None)
        if (is_opening or _LABEL_LINE.match(text, *line)) and text[line[1] : end].strip():
            start = line[1]
        elif label and text[label.end() : end].strip():
            start = label.end()
        else:
            break
        start = trim(text, start, end)[0]
    return start, end


# -- the rules ---------------------------------------------------------------------------------------------------------

_DOCUMENT: Final = r"(?:text|document|passage|article|excerpt|paragraph|content|story|essay|post|blog[ ]post|snippet)"
_DE_DOCUMENT: Final = r"(?:text(?:es|s)?|dokuments?|artikels?|abschnitt(?:es|s)?|absatz(?:es)?|auszugs?|beitrags?)"
_FR_DOCUMENT: Final = r"(?:texte|document|passage|article|extrait|paragraphe)"
_ES_DOCUMENT: Final = (
    r"(?:texto|documento|pasaje|artículo|artigo|fragmento|extracto|párrafo|parágrafo|testo|articolo|brano)"
)
_GIVEN: Final = re.compile(  # a text that the reader ought to have
    rf"""
    \b(?:the|this)[ ](?:above|following|given|provided|attached|accompanying|original|aforementioned|below)[ ]
      (?:[\w-]+[ ]){{0,2}}?{_DOCUMENT}s?\b
    | \b(?:the[ ])?{_DOCUMENT}s?[ ](?:above|below|provided|given|attached|shown)\b
    | \b(?:according[ ]to|based[ ](?:solely[ ])?on|as[ ](?:described|stated|mentioned|discussed)[ ]in|summari[sz]e
      |rewrite|paraphrase|translate|proofread|continue|analy[sz]e|read)[ ](?:the|this|that)[ ]{_DOCUMENT}\b
      (?![ ](?:of|about|by)[ ]\S)
    | \b(?:mentioned|described|discussed|stated|presented|written)[ ](?:above|below)\b
    | \b(?:obige[nrsm]?|folgende[nrsm]?|vorliegende[nrsm]?|gegebene[nrsm]?)[ ]{_DE_DOCUMENT}\b
    | \b(?:diese[nrsm]?|laut[ ]de[mr]|gemäß[ ]de[mr]|im)[ ]{_DE_DOCUMENT}\b
    | \b(?:ce|cet|cette)[ ]{_FR_DOCUMENT}\b | \b{_FR_DOCUMENT}[ ](?:suivant|ci-dessus|ci-dessous|donné|fourni)e?\b
    | \b(?:dans|selon|d['\u2019]après)[ ](?:le[ ]|la[ ]|l['\u2019]){_FR_DOCUMENT}\b
    | \b(?:est[ea]|quest[oa]|deste|neste)[ ]{_ES_DOCUMENT}\b
    | \b{_ES_DOCUMENT}[ ](?:siguiente|anterior|seguinte|acima|abaixo|dado|proporcionado|fornecido|seguente)\b
    | \b(?:según|segundo|en|no|nel|secondo)[ ](?:el[ ]|o[ ]|il[ ]|l['\u2019])?{_ES_DOCUMENT}\b
    | \b(?:эт\w{{1,3}}|данн\w+|приведённ\w+|приведенн\w+|следующ\w+|вышеуказанн\w+)[ ]
      (?:текст|документ|стать|отрывк|отрывок|абзац)\w*
    | \b(?:согласно|в)[ ](?:тексте|тексту|статье|документе|документу|отрывке)\b
    | (?:上述|上面|以上|以下|下面|下列|这篇|该|本|此|给定|文中)(?:的)?(?:文章|文本|文档|段落|短文|内容|材料|所述|提到)
    | (?:この|上記の|以下の|次の|上の|与えられた)(?:文章|テキスト|文書|記事|段落|本文)
    | (?:هذا|هذه)[ ](?:النص|المقال|الوثيقة|الفقرة|المقالة) | النص[ ](?:التالي|أعلاه|السابق|المذكور)
    """,
    re.IGNORECASE | re.VERBOSE,
)
# "the article" and "this story" are fine where the instruction has asked for one: "Write an article ... The article".
_POINTED_AT: Final = re.compile(
    r"""\b(?:(?:this|(?:in|from|according[ ]to)[ ]the)[ ](?P<thing>text|document|passage|article|excerpt|paragraph
        |snippet) | (?:of|about|does)[ ]the[ ](?P<whole>passage|article|excerpt))\b
    (?![ ](?:field|box|file|editor|message|area|input|type|class|object|number|of[ ]the)s?\b)""",
    re.IGNORECASE | re.VERBOSE,
)
# A weak model tells what it sees: "The instruction is about light", "The text answers the question of how ...".
_DESCRIBES: Final = re.compile(
    r"""(?:the|this)[ ](?:
        (?:instruction|prompt)[ ](?:is|was|asks?|asked|answers?|describes?|requests?|requires?|seems|appears|refers
          |provides|focuses|explains|gives|involves|would|could|should|can|for[ ]this|that)\b
        | (?:question|request)[ ](?:asks?|asked|is[ ]asking|answers?|requests?)\b
        | (?:text|passage|document|article|excerpt|answer)[ ](?:is|was|answers?|asks?|describes?|explains?|provides?
          |discusses|does|gives|offers|presents|seems|appears|refers|tells|would|could|talks|contains|suggests)\b
    )""",
    re.IGNORECASE | re.VERBOSE,
)
_AUTHOR: Final = re.compile(r"\b(?:does|did|do|would)[ ]the[ ](?:author|writer|narrator)\b(?! of\b)", re.IGNORECASE)
_RUN: Final = 8
"""Words in a row that two texts do not share by chance."""
_COPIED_SHARE: Final = 0.5
_UNSPACED: Final = r"\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3\u0e00-\u0e7f"
_WORD: Final = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]++")


def mentions_document(text: str) -> bool:
    """Whether an instruction speaks of a text that its reader ought to have ("the passage above", "in this article").

    English, German, French, Spanish, Portuguese, Italian, Russian, Chinese, Japanese and Arabic.
    """
    if _GIVEN.search(text) or _AUTHOR.search(text):
        return True
    for pointed in _POINTED_AT.finditer(text):
        thing = pointed["thing"] or pointed["whole"]
        asked_for = rf"\b(?:an?|one|your|my|our|some)\s(?:[\w'\u2019,-]+\s){{0,6}}?{thing}\b"
        if not re.compile(asked_for, re.IGNORECASE).search(text, 0, pointed.start()):
            return True
    return False


def copies(text: str, document: str) -> bool:
    """Whether at least half of the words of ``text`` are in runs of eight or more that the document has too.

    In scripts without spaces a character counts as a word. Case and punctuation do not count.
    """
    words = _WORD.findall(text.casefold())
    runs = {tuple(words[at : at + _RUN]) for at in range(len(words) - _RUN + 1)}
    if not runs:
        return False
    shared = set[tuple[str, ...]]()
    said = _WORD.findall(document.casefold())
    for at in range(len(said) - _RUN + 1):
        run = tuple(said[at : at + _RUN])
        if run in runs:
            shared.add(run)
    copied, covered_to = 0, 0
    for at in range(len(words) - _RUN + 1):
        if tuple(words[at : at + _RUN]) in shared:
            copied += at + _RUN - max(at, covered_to)
            covered_to = at + _RUN
    return copied >= _COPIED_SHARE * len(words)


# -- the score ---------------------------------------------------------------------------------------------------------

NO_SCORE: Final = "no_score"
"""The rule that rejects a pair whose rating could not be read."""
LOW_SCORE: Final = "low_score"
"""The rule that rejects a pair with a score below ``min_score``."""
_SCORE_NAME: Final = (
    r"(?:score|rating|grade|bewertung|punktzahl|punkte|note|puntuaci[oó]n|calificaci[oó]n|pontuação|nota|punteggio"
    r"|оценка|评分|得分|分数|スコア|評価|点数|점수|التقييم|الدرجة)"
)
# Not the 4 of 45, 4/10, 4-5 or "4 to 5". Half points count down.
_VALUE: Final = (
    r"(?P<value>[1-5\uff11-\uff15]|one\b|two\b|three\b|four\b|five\b)(?:[.,]\d++)?+(?!\d)"
    r"(?!\s*+/\s*+(?!5(?!\d))\d)(?!\s*+(?:-|\u2013|to\b|bis\b|or\b)\s*+\d)"
)
_AROUND: Final = r"[\s\"'*_`<\[({]*+"
_LABELLED_SCORE: Final = re.compile(
    rf"{_SCORE_NAME}[\"'*_`]*+\s*+(?:\([^()\n]{{0,40}}\)[\"'*_`]*+\s*+)?(?:{COLON}|=){_AROUND}{_VALUE}", re.IGNORECASE
)
_SAID_SCORE: Final = re.compile(
    rf"{_SCORE_NAME}[\"'*_`]*+\s++(?:is|of|ist|est|es|would[ ]be|as)\s++{_AROUND}{_VALUE}"
    rf"|\b{_VALUE.replace('?P<value>', '?P<of_five>')}\s*+(?:/|out[ ]of|von|sur|de)\s*+5\b",
    re.IGNORECASE,
)
_LONE_SCORE: Final = re.compile(
    rf"^[ \t\"'*_`<\[(]*+{_VALUE}(?:\s*+/\s*+5)?[\s.*_`\])>]*+$", re.IGNORECASE | re.MULTILINE
)
_FIRST_SCORE: Final = re.compile(rf"{_AROUND}{_VALUE}(?=[\s.,:;)\-\u2013*]|$)", re.IGNORECASE)
_SECOND_ITEM: Final = re.compile(r"^[ \t]*+2[.)]", re.MULTILINE)
_WORDS: Final = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5}


def find_score(text: str) -> int | None:
    """Return the rating (1 to 5) of an answer, or ``None`` if it has none.

    The last "Score: 4" counts, else "a score of 4" or "4/5", else a line that is nothing but a number, else a number
    at the beginning that does not number the first item of a list. Thinking is left out. Half points are rounded down.
    """
    answer = answer_span(text)
    if answer is None:
        return None
    for pattern in (_LABELLED_SCORE, _SAID_SCORE, _LONE_SCORE):
        if found := list(pattern.finditer(text, *answer)):
            return _value(found[-1])
    first = _FIRST_SCORE.match(text, *answer)
    if first is None:
        return None
    if text.startswith((".", ")"), first.end()) and _SECOND_ITEM.search(text, first.end(), answer[1]):
        return None
    return _value(first)


def _value(match: re.Match[str]) -> int:
    written = (match.groupdict().get("value") or match["of_five"]).lower()
    return _WORDS[written] if written in _WORDS else int(written)
