"""Colours, type and the few marks that every picture of ours is made of."""

from __future__ import annotations

from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

PAPER, INK, SOFT, LINE = "#ffffff", "#16181d", "#5c626e", "#d5d8de"
# Dark blue and light amber differ in lightness (18 and 78 of 100), so they stay apart in grey and for the colour-blind.
COMPUTED, PARTIAL, PREDICTED, ABSENT = "#1d3a6b", "#6f8fbf", "#f3c368", "#eceef1"
KEPT_COLORS = (PAPER, INK, SOFT, LINE, COMPUTED, PARTIAL, PREDICTED, ABSENT)
MARGIN = 32

_REPLACED = {0xD7: "x", 0x2013: "-", 0x2014: "-", 0x2026: "...", 0x2019: "'", 0x201C: '"', 0x201D: '"', 10: " "}


@lru_cache(maxsize=32)
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, so that pictures look the same everywhere."""
    return ImageFont.load_default(size=size)


def plain(text: str) -> str:
    """Text in the characters that the font has; others become ``?``."""
    return "".join(c if 32 <= ord(c) < 127 or c == "·" else "?" for c in text.translate(_REPLACED))


def text_width(text: str, size: int) -> int:
    """Width of a line in pixels."""
    return int(font(size).getlength(plain(text)) + 0.999)


def shorten(text: str, size: int, room: int) -> str:
    """The line, cut at a word with ``...`` where it is wider than ``room`` pixels."""
    if text_width(text, size) <= room:
        return text
    while text and text_width(text + "...", size) > room:
        head, space, _ = text.rpartition(" ")
        text = head if space else text[:-1]
    return text + "..."


def write_text(
    draw: ImageDraw.ImageDraw, xy: tuple[float, float], text: str, size: int, fill: str = INK, anchor: str = "la"
) -> None:
    """One line; ``anchor`` as in Pillow: ``la`` left and top, ``mm`` centre, ``rs`` right and baseline."""
    draw.text(xy, plain(text), fill=fill, font=font(size), anchor=anchor)


def sheet(width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """A blank picture and its pen."""
    image = Image.new("RGB", (width, height), PAPER)
    return image, ImageDraw.Draw(image)
