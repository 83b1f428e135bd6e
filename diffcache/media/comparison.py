"""What a comparison of dense and accelerated shows, in the form that the pictures are made of."""

from __future__ import annotations

from dataclasses import dataclass

from .frames import Clip
from .strip import StripRow


@dataclass(frozen=True)
class Comparison:
    """Two generations of one seed, and the figures measured on them.

    Attributes:
        title, subtitle: two lines over the picture.
        method: name of the accelerated side.
        dense, fast: the clips, of one shape.
        figures: (value, what it is), shown large, at most four or five.
        rows: the decision strip of the accelerated side.
        footnote: one line under the strip.
        start: the frame that was given (a clip of one frame), or None.
        truth: the frames that really followed, or None.
        seconds: in the denoiser, (dense, accelerated).
    """

    title: str
    subtitle: str
    method: str
    dense: Clip
    fast: Clip
    figures: list[tuple[str, str]]
    rows: list[StripRow]
    footnote: str = ""
    start: Clip | None = None
    truth: Clip | None = None
    seconds: tuple[float, float] = (0.0, 0.0)
