"""The recording of the display: what a terminal shows becomes a picture that runs nothing."""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from benchmarks.recording import MOST_BYTES, Frame, Run, record, svg

COMMITTED = Path(__file__).parent.parent.parent / "docs" / "assets" / "live.svg"
SVG = "{http://www.w3.org/2000/svg}"

SHOWS = r"""
import sys, time
sys.stderr.write("a message <&\n\x1b[2mlimit\x1b[0m  \x1b[36m━━\x1b[0m\x1b[1m 9%\x1b[0m")
sys.stderr.flush()
sys.stderr.write("\r\x1b[J10%\n")
sys.exit(int(sys.argv[1]))
"""


def texts(frame: Frame) -> list[list[str]]:
    return [[run.text for run in line] for line in frame]


def test_a_command_is_recorded_as_a_terminal_shows_it(tmp_path: Path) -> None:
    frames = record([sys.executable, "-c", SHOWS, "0"], "$ shown", 80, tmp_path)
    assert texts(frames[0][1]) == [["$ shown"]]
    assert texts(frames[-1][1]) == [["$ shown"], ["a message <&"], ["10%"]]
    assert [at_s for at_s, _ in frames] == sorted(at_s for at_s, _ in frames)


def test_a_command_that_fails_is_no_recording(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="exit code 3"):
        record([sys.executable, "-c", SHOWS, "3"], "$ shown", 80, tmp_path)


def test_a_picture_has_each_frame_with_its_colours_and_texts_as_text() -> None:
    first: Frame = ((Run(0, "</text><script>1</script>", "cyan", is_bold=True),),)
    second: Frame = ((Run(3, "limit", "brightblack", is_bold=False),), (), (Run(0, "&", "odd", is_bold=False),))
    root = ET.fromstring(svg([(0.0, first), (2.0, second)], 80))  # noqa: S314 - our own
    one, two = root.findall(f"{SVG}g/{SVG}g")
    assert [(text.text, text.get("class")) for text in one] == [("</text><script>1</script>", "cyan bold")]
    assert [(text.text, text.get("class")) for text in two] == [("limit", "brightblack"), ("&", "default")]
    style = root.findtext(f"{SVG}style") or ""
    assert re.findall(r"([\d.]+)%\{transform", style) == ["0.00", "20.00"]
    assert "prefers-reduced-motion" in style


def test_the_committed_picture_is_of_a_finished_run_and_loads_nothing() -> None:
    text = COMMITTED.read_text(encoding="utf-8")
    assert len(text.encode()) < MOST_BYTES
    root = ET.fromstring(text)  # noqa: S314 - our own
    frames = [["".join(text.text or "" for text in frame)] for frame in root.findall(f"{SVG}g/{SVG}g")]
    assert len(frames) > 5
    assert "fastgen generate" in frames[0][0]
    assert "100% · done" in frames[-1][0]
    assert "read it" in frames[-1][0]
    assert {one.tag.removeprefix(SVG) for one in root.iter()} == {"svg", "style", "rect", "g", "text"}
    assert "url(" not in text
    assert "@import" not in text
