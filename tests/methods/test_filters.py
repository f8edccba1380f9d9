"""The rules for one instruction: each by its name, their order, other scripts, and what Rules refuses."""

from __future__ import annotations

import re
import string
import sys
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgen.errors import InputError
from fastgen.methods.self_instruct.filters import INSTRUCTION_RULES, check_instruction, count_words
from fastgen.methods.self_instruct.rules import BANNED_WORDS, CHAT_SAMPLING_PRESETS, PRESETS, SAMPLING_PRESETS, Rules
from fastgen.types import Sampling

DEFAULT, PAPER = PRESETS["default"], PRESETS["paper"]
WORDS_BANNED = replace(DEFAULT, banned_words=BANNED_WORDS, reject_media_requests=False)
LONG = " ".join(["word"] * 151)

ALIKE = [
    ("Write a short poem about the sea.", None),
    ("", "empty"),
    (" \n\t ", "empty"),
    ("Write a poem", "too_short"),
    ("Write a poem now", None),
    (" ".join(["word"] * 150), None),
    (LONG, "too_long"),
    ("Where would you go  to on holiday?", None),
    ("Imagine that a filed complaint was lost.", None),
    ("Photograph a mapped territory in words only.", None),
    ("Explain what go-to means in sport.", None),
    ("Write a program that sorts numbers.", "banned_start"),
    ("Write a programme for the village fair.", "banned_start"),
    ("Please write a program that sorts numbers.", None),
    ("-- write a poem about rain.", "punctuation_start"),
    ("$5 is how many euros today?", "punctuation_start"),
    ("3 plus 4 makes what number?", None),
]


@pytest.mark.parametrize("rules", [DEFAULT, PAPER], ids=["default", "paper"])
@pytest.mark.parametrize(("text", "rule"), ALIKE)
def test_both_presets_agree_on_plain_english(text: str, rule: str | None, rules: Rules) -> None:
    assert check_instruction(text, rules) == rule


@pytest.mark.parametrize(
    ("text", "default", "paper"),
    [
        ("Describe what the image shows.", "media_request", "banned_word"),
        ("Describe what the IMAGE shows.", "media_request", "banned_word"),
        ("Describe the graph, then explain it.", "media_request", "banned_word"),
        ("Read the files and list them.", "media_request", "banned_word"),
        ("What is the plot of the novel?", None, "banned_word"),
        ("Where would you go to on holiday?", None, "banned_word"),
        ('"To be or not to be": who said that?', None, "punctuation_start"),
        ("(Optional) Explain what a noun is.", None, "punctuation_start"),
        ('" is the mark that I want explained', "punctuation_start", "punctuation_start"),
        ("»Freiheit« ist ein großes Wort. Erkläre es.", None, "non_ascii_start"),
        ("» Freiheit ist ein großes Wort.", "punctuation_start", "non_ascii_start"),
        ("„Freiheit“ ist ein großes Wort. Erkläre es.", None, "non_ascii_start"),
        ("”Frihet” är ett stort ord. Förklara det.", None, "non_ascii_start"),
        ("～这个句子以波浪线开头。", "punctuation_start", "too_short"),
        ("→ Explain what a noun is.", "punctuation_start", "non_ascii_start"),
        ("🎵 Write a song about rain.", "punctuation_start", "non_ascii_start"),
        ("Spell this word: " + "a" * 3000, "too_long", None),
        ("Écris un poème sur la mer.", None, "non_ascii_start"),
        ("写一首关于春天的诗。", None, "too_short"),
        ("写诗。", "too_short", "too_short"),
        ("春についての俳句を書いてください。", None, "too_short"),
        ("แต่งกลอนเกี่ยวกับฤดูฝน", None, "too_short"),
        ("봄에 대한 짧은 시를 써 주세요.", None, "non_ascii_start"),
        ("¿Cuál es la capital de Perú?", None, "non_ascii_start"),
        ("《红楼梦》的作者是谁？请简要介绍。", None, "too_short"),
        ("«Война и мир» — кто её написал?", None, "non_ascii_start"),
        ("。 这个 句子 以 标点 开头", "punctuation_start", "non_ascii_start"),
        ("… and then what happened next?", "punctuation_start", "non_ascii_start"),
        ("字" * 301, "too_long", "too_short"),
        ("write a program that sorts numbers.", "banned_start", "banned_start"),
    ],
)
def test_the_presets_differ_on_other_scripts(text: str, default: str | None, paper: str | None) -> None:
    assert (check_instruction(text, DEFAULT), check_instruction(text, PAPER)) == (default, paper)


def test_the_first_rule_in_the_method_s_order_names_the_rejection() -> None:
    names = [name for name, _ in INSTRUCTION_RULES]
    assert names == [
        *("empty", "too_short", "too_long", "banned_word", "media_request"),
        *("banned_start", "punctuation_start", "non_ascii_start"),
    ]
    breaks_all = "! draw"
    assert check_instruction(breaks_all, PAPER) == "too_short"
    assert check_instruction(f"! {LONG} draw", PAPER) == "too_long"
    assert check_instruction("! draw me a sheep", PAPER) == "banned_word"
    assert check_instruction("Write a program that can draw", PAPER) == "banned_word"
    assert check_instruction("é draw me a sheep", replace(PAPER, banned_words=())) == "non_ascii_start"


@given(st.text(max_size=80))
def test_any_text_gets_a_known_answer(text: str) -> None:
    names = {name for name, _ in INSTRUCTION_RULES}
    for rules in (DEFAULT, PAPER):
        rule = check_instruction(text, rules)
        assert rule is None or rule in names
        first = next((name for name, rejects in INSTRUCTION_RULES if rejects(text, rules)), None) if text else "empty"
        assert rule == first


@given(st.text(alphabet=string.printable + "éàüñßЖд한국عربي", max_size=60))
def test_both_word_counts_agree_where_words_are_spaced(text: str) -> None:
    assert count_words(text, DEFAULT) == count_words(text, PAPER) == len(text.split())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("写诗", 1),
        ("写一首诗", 2),
        ("写一首诗。", 2),
        ("用Python写一个函数", 4),
        ("请 用 英语 回答", 3),
        ("俳句を書いて", 3),
        ("ภาษาไทย", 2),
        ("ကမ္ဘာမြေ", 2),
        ("Translate 你好 into English", 4),
    ],
)
def test_scripts_without_spaces_count_characters_per_word(text: str, words: int) -> None:
    assert count_words(text, DEFAULT) == words


def test_a_banned_word_of_a_script_without_spaces_is_found_inside_a_sentence() -> None:
    rules = replace(WORDS_BANNED, banned_words=("图片", "image"))
    assert check_instruction("请描述这张图片里的内容。", rules) == "banned_word"
    assert check_instruction("请描述这张image里的内容。", rules) is None  # "image" is a word only on its own
    assert check_instruction("请描述这张照片里的内容。", rules) is None


def test_a_banned_word_may_begin_and_end_in_symbols() -> None:
    rules = replace(DEFAULT, banned_words=("C++", ".NET"))
    assert check_instruction("Explain pointers in C++ to me.", rules) == "banned_word"
    assert check_instruction("Explain what .net stands for.", rules) == "banned_word"
    assert check_instruction("Explain pointers in C to me.", rules) is None


@given(
    st.lists(st.sampled_from([*BANNED_WORDS, "fileſ", "plotſ", "maps", "imag", "İmages", "a", "é", "Kap"]), max_size=4)
)
def test_the_fast_path_finds_what_the_pattern_finds(words: list[str]) -> None:
    text = "Tell me about " + " ".join(words)
    slow = re.search("|".join(rf"\b{word}\b" for word in BANNED_WORDS), text, re.IGNORECASE)
    assert (check_instruction(text, replace(WORDS_BANNED, min_words=1)) == "banned_word") == bool(slow)


def test_only_four_other_characters_match_ascii_letters_in_any_case() -> None:
    everything = "".join(map(chr, range(128, sys.maxunicode + 1)))
    found = {match for letter in string.ascii_lowercase for match in re.findall(letter, everything, re.IGNORECASE)}
    assert found == set("\u0130\u0131\u017f\u212a")  # what filters._FOLDS_TO_ASCII relies on


def test_an_instruction_costs_a_few_microseconds() -> None:
    texts = [
        f"Explain to a beginner how number {i} is used in cooking, and give two examples of it." for i in range(2000)
    ]
    fastest = float("inf")
    for _ in range(5):
        start = time.process_time()
        for text in texts:
            check_instruction(text, DEFAULT)
        fastest = min(fastest, time.process_time() - start)
    assert fastest / len(texts) < 25e-6  # 3 us measured; the rest is for a busy machine


@pytest.mark.parametrize(
    ("change", "flag"),
    [
        ({"min_words": 0}, "--min-words"),
        ({"min_words": True}, "--min-words"),
        ({"max_words": 1.5}, "--max-words"),
        ({"min_words": 9, "max_words": 8}, "--min-words"),
        ({"max_instances": 0}, "--max-instances"),
        ({"max_characters": -1}, "--max-characters"),
        ({"reject_media_requests": "yes"}, "--reject-media-requests"),
        ({"reject_contradictions": 1}, "--reject-contradictions"),
        ({"unfinished": "drop"}, "--unfinished"),
        ({"list_style": "strict"}, "--list-style"),
        ({"answer_style": ""}, "--answer-style"),
        ({"instance_style": "x"}, "--instance-style"),
        ({"word_count": "x"}, "--word-count"),
        ({"punctuation_start": "x"}, "--punctuation-start"),
        ({"capitalise": "yes"}, "--capitalise"),
        ({"reject_non_ascii_start": 1}, "--reject-non-ascii-start"),
        ({"banned_words": ("map", " ")}, "--banned-words"),
        ({"banned_words": "map"}, "--banned-words"),
        ({"banned_starts": (1,)}, "--banned-starts"),
    ],
)
def test_a_bad_rule_is_one_line_that_names_its_flag(change: dict[str, object], flag: str) -> None:
    with pytest.raises(InputError) as caught:
        replace(DEFAULT, **change)  # type: ignore[arg-type]  # wrong on purpose
    assert str(caught.value).startswith(f"{flag}: ")
    assert "\n" not in str(caught.value)


def test_rules_may_be_switched_off() -> None:
    off = Rules(reject_media_requests=False, banned_starts=(), punctuation_start="off", max_characters=0)
    assert check_instruction("Spell this word: " + "a" * 3000, off) is None
    assert check_instruction("Write a program that can draw", off) is None
    assert check_instruction("...draw a map of Peru", off) is None


def test_the_paper_preset_samples_as_the_original_did() -> None:
    paper = SAMPLING_PRESETS["paper"]
    assert paper["instruction"] == Sampling(0.7, 0.5, 1024, 2.0, 0.0, ("\n\n", "\n16", "16.", "16 ."))
    assert paper["classification"].max_tokens == 3
    assert paper["classification"].stop == ("\n", "Task")
    for stage, max_tokens in (("instance_output_first", 300), ("instance_input_first", 350)):
        assert (paper[stage].temperature, paper[stage].presence_penalty, paper[stage].max_tokens) == (
            0,
            1.5,
            max_tokens,
        )
        assert paper[stage].stop == ("Example 6", "Task:")


def test_every_preset_samples_every_stage_within_the_limits_of_the_api() -> None:
    for presets in (SAMPLING_PRESETS, CHAT_SAMPLING_PRESETS):
        assert set(presets) == set(PRESETS)
        for stages in presets.values():
            assert set(stages) == {"instruction", "classification", "instance_output_first", "instance_input_first"}
            for sampling in stages.values():
                assert 0 < sampling.top_p <= 1  # vLLM refuses 0
                assert len(sampling.stop) <= 4
                assert sampling.max_tokens > 0


def test_no_default_stop_string_cuts_a_year_or_a_word() -> None:
    text = "In 2016. we sent my Task: and Example 6 of it"
    stops = {
        stop for stage, how in SAMPLING_PRESETS["default"].items() if stage != "classification" for stop in how.stop
    }
    assert stops
    assert not any(stop in text for stop in stops)
