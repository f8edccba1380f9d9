"""Records the live display of a real run as an animated SVG: ``docs/assets/live.svg``.

It starts the simulator, runs ``fastgen generate`` against it in a pseudo-terminal, and draws what a terminal shows each
second, with a summary at the end. The picture has a dark window of its own, so that it reads the same on a light and on
a dark page. Viewers that ask for less motion see the last frame.

    python -m benchmarks.recording                                 # writes docs/assets/live.svg
    python -m benchmarks.recording --columns 120 --output wide.svg
"""

from __future__ import annotations

import argparse
import fcntl
import os
import pty
import shlex
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Final

import pyte

from benchmarks.harness import ROOT, test_server

ROWS: Final = 40
MODEL: Final = "Qwen/Qwen3-8B-Base"
MOST_BYTES: Final = 200_000
_EVERY_S: Final = 1.0
_LAST_S: Final = 8.0  # how long the last frame stays
_FONT, _CELL, _LINE, _EDGE = 14.0, 8.43, 20.0, 16.0  # pixels: font, width of a character, height of a line, margin
_COLOURS: Final = {"cyan": "#56c8d8", "green": "#6cc070", "brightblack": "#8b949e", "default": "#dde3ea"}
_BACKGROUND: Final = "#14181d"


@dataclass(frozen=True, slots=True)
class Run:
    """Characters of a line that look alike."""

    column: int
    text: str
    colour: str
    is_bold: bool


Frame = tuple[tuple[Run, ...], ...]


class _Screen(pyte.Screen):
    """A terminal that shows faint text in grey, which pyte leaves out."""

    def select_graphic_rendition(self, *attributes: int) -> None:
        super().select_graphic_rendition(*(90 if one == 2 else one for one in attributes))


def frame_of(screen: pyte.Screen) -> Frame:
    """What a screen shows, without the empty lines at its end."""
    lines = [tuple(_runs([screen.buffer[row][column] for column in range(screen.columns)])) for row in range(ROWS)]
    while lines and not lines[-1]:
        lines.pop()
    return tuple(lines)


def _runs(cells: Sequence[pyte.screens.Char]) -> Iterator[Run]:
    column = 0
    for (colour, is_bold), group in groupby(cells, key=lambda one: (one.fg, one.bold)):
        text = "".join(one.data for one in group)
        if text.strip():
            yield Run(column, text.rstrip(), colour, is_bold)
        column += len(text)


def record(command: Sequence[str], shown: str, columns: int, folder: Path) -> list[tuple[float, Frame]]:
    """Seconds and what the terminal showed, each second that it changed. ``shown`` stands for the command."""
    screen = _Screen(columns, ROWS)
    stream = pyte.ByteStream(screen)
    stream.feed(shown.encode() + b"\r\n")
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, columns, 0, 0))
    environment = os.environ | {"TERM": "xterm-256color", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, cwd=folder)
    os.close(theirs)
    began_s = time.monotonic()
    frames = [(0.0, frame_of(screen))]
    while block := _read(ours):
        stream.feed(block)
        now_s = time.monotonic() - began_s
        if now_s - frames[-1][0] >= _EVERY_S and (frame := frame_of(screen)) != frames[-1][1]:
            frames.append((now_s, frame))
    os.close(ours)
    if (code := process.wait()) != 0:
        raise SystemExit(f"the run ended with exit code {code}:\n" + "\n".join(screen.display))
    return [*frames, (time.monotonic() - began_s, frame_of(screen))]


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # what Linux says at the end of a pseudo-terminal
        return b""


def svg(frames: Sequence[tuple[float, Frame]], columns: int) -> str:
    """The frames below each other in one strip, of which a window shows one after the other."""
    rows = max(len(frame) for _, frame in frames)
    width, height = columns * _CELL + 2 * _EDGE, rows * _LINE + 2 * _EDGE
    total_s = frames[-1][0] + _LAST_S
    steps = "".join(
        f"{100 * at_s / total_s:.2f}%{{transform:translateY({-number * height:.0f}px)}}"
        for number, (at_s, _) in enumerate(frames)
    )
    last = f"translateY({-(len(frames) - 1) * height:.0f}px)"
    classes = "".join(f".{name}{{fill:{colour}}}" for name, colour in _COLOURS.items())
    strip = "".join(
        f'<g transform="translate(0 {number * height:.0f})">{_drawn(frame)}</g>'
        for number, (_, frame) in enumerate(frames)
    )
    return f"""\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" \
height="{height:.0f}" role="img" aria-label="A run of fastgen generate in a terminal">
<style>
text{{font:{_FONT:.0f}px ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;white-space:pre}}
.bold{{font-weight:600}}{classes}
.strip{{animation:play {total_s:.1f}s step-end infinite}}
@keyframes play{{{steps}}}
@media (prefers-reduced-motion:reduce){{.strip{{animation:none;transform:{last}}}}}
</style>
<rect width="100%" height="100%" rx="8" fill="{_BACKGROUND}"/>
<g class="strip">{strip}</g>
</svg>
"""


def _drawn(frame: Frame) -> str:
    return "".join(
        f'<text x="{_EDGE + run.column * _CELL:.1f}" y="{_EDGE + (row + 0.75) * _LINE:.1f}"'
        f' textLength="{len(run.text) * _CELL:.1f}" lengthAdjust="spacingAndGlyphs"'
        f' class="{run.colour if run.colour in _COLOURS else "default"}{" bold" if run.is_bold else ""}">'
        f"{escape(run.text)}</text>"
        for row, line in enumerate(frame)
        for run in line
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Record one run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "assets" / "live.svg")
    parser.add_argument("--columns", type=int, default=80)
    parser.add_argument("--instructions", type=int, default=1000)
    parser.add_argument("--engine", default="h100-8b", help="of the simulator")
    parser.add_argument("--port", default="8000", help="of the simulator")
    asked = parser.parse_args(arguments)
    flags = ["--model", MODEL, "--engine", asked.engine, "--port", asked.port]
    with test_server(*flags) as server, tempfile.TemporaryDirectory() as name:
        first = ["generate", "--base-url", server.base_url]
        then = ["--num-instructions", str(asked.instructions), "--run-dir", "runs/big"]
        shown = f"$ {shlex.join(['fastgen', *first])} \\\r\n    {shlex.join(then)}"
        frames = record([sys.executable, "-m", "fastgen", *first, *then], shown, asked.columns, Path(name))
    drawn = svg(frames, asked.columns)
    if len(drawn.encode()) > MOST_BYTES:
        raise SystemExit(f"{len(drawn.encode()):,} bytes are more than {MOST_BYTES:,}; ask for fewer --instructions")
    asked.output.parent.mkdir(parents=True, exist_ok=True)
    asked.output.write_text(drawn, encoding="utf-8")
    print(f"{asked.output}: {len(frames)} frames, {frames[-1][0]:.0f} s, {len(drawn.encode()):,} bytes")


if __name__ == "__main__":
    main()
