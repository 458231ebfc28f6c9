"""Draws docs/demo.png, the README's picture, from a real run of the demo: `.venv/bin/python docs/demo_picture.py`."""

import os
import subprocess
import sys
from itertools import chain, pairwise
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.text import Text

PICTURE = Path(__file__).with_name("demo.png")
FONTS = ("DejaVuSansMono.ttf", "DejaVuSansMono-Bold.ttf")  # fonts-dejavu-core
FONT_SIZE = 22
MARGIN = 28
INK, PAPER = (217, 217, 217), (22, 24, 29)
COLORS = {1: (255, 110, 103), 2: (126, 220, 100)}  # the terminal's red and green
COLUMNS = 64
SHOWN_ROWS = slice(1, 3)  # of the rows that the demo shows, those where the fusion outdoes a member


def run_demo() -> list[str]:
    """Return the lines that the demo prints, with their colours."""
    environment = os.environ | {"FORCE_COLOR": "1", "TTY_INTERACTIVE": "0", "COLUMNS": str(COLUMNS), "TERM": "xterm-256color"}
    command = [sys.executable, "-c", "from twinfer.cli import main; main()", "demo"]
    return subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()


def pick(lines: list[str]) -> list[str]:
    """Keep two rows and the accuracies: what fits on a first screen. The speed is that of one machine, and is left out."""
    ends = [number for number, line in enumerate(lines) if "said:" in line]
    rows = [lines[before + 2 : end + 2] for before, end in pairwise(ends)][SHOWN_ROWS.start - 1 : SHOWN_ROWS.stop - 1]
    right = next(line for line in lines if line.startswith("Right:"))
    return ["\x1b[1m$ make demo\x1b[0m", *chain.from_iterable(rows), right]


def draw(lines: list[str]) -> Image.Image:
    """Draw lines of a terminal."""
    console = Console(width=COLUMNS)
    font, bold = (ImageFont.truetype(name, FONT_SIZE) for name in FONTS)
    width, height = font.getlength("█"), FONT_SIZE * 1.2
    picture = Image.new("RGB", (round(COLUMNS * width) + 2 * MARGIN, round(len(lines) * height) + 2 * MARGIN), PAPER)
    pen = ImageDraw.Draw(picture)
    for number, line in enumerate(lines):
        column = 0
        for segment in Text.from_ansi(line).render(console):
            color = segment.style.color if segment.style else None
            ink = COLORS.get(color.number or 0, INK) if color else INK
            face = bold if segment.style and segment.style.bold else font
            for character in segment.text.rstrip("\n"):
                place = (MARGIN + column * width, MARGIN + number * height)
                if character in "░▒▓█":  # drawn whole, so that no gap shows between them
                    share = ("░▒▓█".index(character) + 1) / 4
                    shade = tuple(round(paper + share * (full - paper)) for paper, full in zip(PAPER, INK, strict=True))
                    pen.rectangle((*place, place[0] + width, place[1] + height), fill=shade)
                else:
                    pen.text(place, character, fill=ink, font=face)
                column += 1
    return picture


if __name__ == "__main__":
    draw(pick(run_demo())).quantize(32).save(PICTURE, optimize=True)
