"""What is accepted from the model, as data: the rules of each preset and how each stage samples.

``PRESETS["paper"]`` parses, filters and scores as the released code of Self-Instruct (Wang et al., ACL 2023);
``PRESETS["default"]`` differs only where the original has a defect or cannot cope with what today's models write. Both
are documented rule by rule in ``docs/rules.md``. The similarity threshold belongs to `fastgen.similarity.options`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Literal, get_args, get_origin, get_type_hints

from fastgen.errors import InputError, flag_name
from fastgen.types import Sampling

Style = Literal["lenient", "paper"]
Unfinished = Literal["drop_item", "drop_completion"]
WordCount = Literal["any_script", "whitespace"]
PunctuationStart = Literal["symbols", "unicode", "ascii", "off"]

BANNED_WORDS: Final = (
    *("image", "images", "graph", "graphs", "picture", "pictures", "file", "files", "map", "maps"),
    *("draw", "plot", "go to"),
)


@dataclass(frozen=True, slots=True)
class Rules:
    """Everything that decides whether a parsed text is accepted. The defaults are the ``default`` preset.

    :raises InputError: a value is out of range; the message names the flag and the remedy.
    """

    min_words: int = 4
    """Fewest words of an instruction (1 or more)."""
    max_words: int = 150
    """Most words of an instruction."""
    max_characters: int = 3000
    """Most characters of an instruction, however few words they make (0: no limit)."""
    word_count: WordCount = "any_script"
    """How words are counted. whitespace: by the spaces between them; any_script: scripts without spaces by their
    characters."""
    banned_words: tuple[str, ...] = ()
    """Reject an instruction with one of these as a whole word, in any case."""
    reject_media_requests: bool = True
    """Reject an instruction that asks a text model to make or look at a picture, file, recording or page."""
    banned_starts: tuple[str, ...] = ("Write a program",)
    """Reject an instruction that starts with one of these, in any case."""
    punctuation_start: PunctuationStart = "symbols"
    """What may not come first. ascii: ASCII punctuation; unicode: also other scripts' unless it opens; symbols:
    everything that is no letter, no digit and opens no quotation or bracket."""
    reject_non_ascii_start: bool = False
    """Reject an instruction whose first character is not ASCII."""
    unfinished: Unfinished = "drop_item"
    """What an instruction completion cut by max_tokens loses: its last item, or everything."""
    list_style: Style = "lenient"
    """How numbered lists are read. paper: items begin with a line break, a number and '. ' only."""
    capitalise: bool = False
    """Apply str.capitalize() to instructions, which lower-cases all but the first letter."""
    answer_style: Style = "lenient"
    """How the classification answer is read. paper: only 'yes' counts."""
    instance_style: Style = "lenient"
    """How instances are read. paper: only 'Example k', 'Input:', 'Output:' and 'Class label:' are labels."""
    max_instances: int = 5
    """Most instances kept for one instruction, the first ones."""
    reject_unknown_labels: bool = True
    """Reject an example without a known label that begins with another one ('Ulaz: ...')."""
    reject_repeated_instruction: bool = True
    """Reject an output that only repeats the instruction."""
    reject_contradictions: bool = True
    """Reject different labels, numbers or yes and no for one task without an input, all of them."""

    def __post_init__(self) -> None:
        for name, kind in _TYPES.items():
            _check(name, kind, getattr(self, name))
        if self.min_words > self.max_words:
            raise InputError(
                f"--min-words: {self.min_words} is above --max-words {self.max_words}; lower the one or raise the other"
            )


_TYPES: Final = get_type_hints(Rules)


def _check(name: str, kind: Any, value: object) -> None:  # noqa: ANN401 - any annotation of `Rules`
    """:raises InputError: the value is not of this type or out of range."""
    flag, choices = flag_name(name), get_args(kind)
    if kind is bool and not isinstance(value, bool):
        raise InputError(f"{flag}: {value!r} is neither true nor false")
    least = 0 if name == "max_characters" else 1
    if kind is int and (not isinstance(value, int) or isinstance(value, bool) or value < least):
        raise InputError(f"{flag}: {value!r} is not a whole number of {least} or more")
    if get_origin(kind) is Literal and value not in choices:
        raise InputError(f"{flag}: {value!r} is none of {', '.join(choices)}")
    if get_origin(kind) is tuple:
        if not isinstance(value, tuple) or not all(isinstance(text, str) for text in value):
            raise InputError(f"{flag}: {value!r} is not a list of texts")
        if not all(text.strip() for text in value):
            raise InputError(f"{flag}: an empty text would match everything; leave it out")


RULES_OF_EARLIER_RUNS: Final[Mapping[str, Any]] = MappingProxyType(
    {
        "max_characters": 0,
        "reject_media_requests": False,
        "reject_unknown_labels": False,
        "reject_repeated_instruction": False,
        "reject_contradictions": False,
    }
)
"""The values of rules that a run's configuration lacks because they came after the run was begun: all off."""

PRESETS: Final[Mapping[str, Rules]] = MappingProxyType(
    {
        "default": Rules(),
        "paper": Rules(
            **RULES_OF_EARLIER_RUNS,  # the original has none of them
            banned_words=BANNED_WORDS,
            word_count="whitespace",
            punctuation_start="ascii",
            reject_non_ascii_start=True,
            unfinished="drop_completion",
            list_style="paper",
            capitalise=True,
            answer_style="paper",
            instance_style="paper",
        ),
    }
)

# Greedy decoding ignores top_p, and vLLM refuses the original's 0 (it wants more than 0), hence 1 at temperature 0.
_PAPER_SAMPLING: Final[Mapping[str, Sampling]] = {
    "instruction": Sampling(0.7, 0.5, 1024, presence_penalty=2.0, stop=("\n\n", "\n16", "16.", "16 .")),
    "classification": Sampling(0.0, 1.0, 3, stop=("\n", "Task")),
    "instance_output_first": Sampling(0.0, 1.0, 300, presence_penalty=1.5, stop=("Example 6", "Task:")),
    "instance_input_first": Sampling(0.0, 1.0, 350, presence_penalty=1.5, stop=("Example 6", "Task:")),
}
# The original's figures turned out best on a small base model too (docs/rules.md). Stop strings begin at the start of a
# line, so that "2016." or "my Task:" inside a text does not end it. Half the tokens are enough for 7 new instructions.
_DEFAULT_SAMPLING: Final[Mapping[str, Sampling]] = {
    "instruction": Sampling(0.7, 0.5, 512, presence_penalty=2.0, frequency_penalty=0.2, stop=("\n\n", "\n16.")),
    "classification": Sampling(0.0, 1.0, 3, stop=("\n", "Task")),
    "instance_output_first": Sampling(0.0, 1.0, 300, presence_penalty=1.5, stop=("\nExample 6", "\nTask:")),
    "instance_input_first": Sampling(0.0, 1.0, 350, presence_penalty=1.5, stop=("\nExample 6", "\nTask:")),
}
# An instruct model ends its answer by itself. It gets no stop strings (they would also end a chatty first line or
# thinking), room for longer answers, no penalty on an output that has to repeat its input, and a temperature for lists,
# which would hardly vary otherwise.
_CHAT_SAMPLING: Final[Mapping[str, Sampling]] = {
    "instruction": Sampling(1.0, 0.95, 1024),
    "classification": Sampling(0.0, 1.0, 16),
    "instance_output_first": Sampling(0.0, 1.0, 768),
    "instance_input_first": Sampling(0.0, 1.0, 1024),
}
SAMPLING_PRESETS: Final[Mapping[str, Mapping[str, Sampling]]] = MappingProxyType(
    {"default": MappingProxyType(_DEFAULT_SAMPLING), "paper": MappingProxyType(_PAPER_SAMPLING)}
)
"""By preset, then by stage (instances: by kind of task), for ``/v1/completions``."""
CHAT_SAMPLING_PRESETS: Final[Mapping[str, Mapping[str, Sampling]]] = MappingProxyType(
    {"default": MappingProxyType(_CHAT_SAMPLING), "paper": MappingProxyType(_PAPER_SAMPLING)}
)
"""The same for ``/v1/chat/completions``; ``paper`` knows no chat, so its figures are the same."""
