"""What a comparison of dense and accelerated shows, in the form that the pictures are made of."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .frames import Clip, brighten_depth
from .strip import StripRow

if TYPE_CHECKING:
    from .runs import Pair
    from .session import Session


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


def compose(session: Session, pair: Pair, repeats: int) -> Comparison:
    """The comparison of a measured pair."""
    figures = [
        (f"{pair.denoiser_speedup:.2f}x", "denoiser speed-up"),
        (f"{pair.pipeline_speedup:.2f}x", "pipeline speed-up"),
        (psnr_text(pair.fidelity.psnr), "PSNR against dense"),
        (f"{pair.fidelity.ssim:.4f}", "SSIM against dense"),
        (f"{pair.fast.cached_bytes / 1e6:.2f} MB", "cached"),
    ]
    runs = "one run" if repeats == 1 else f"medians of {repeats} interleaved runs"
    seconds = "denoiser {:.2f} s and {:.2f} s, whole pipeline {:.2f} s and {:.2f} s".format(
        *pair.denoiser, *pair.pipeline
    )
    clips = [pair.dense.clip, pair.fast.clip, session.call.start, session.call.truth]
    dense, fast, start, truth = brighten_depth(clips)
    return Comparison(
        f"{session.name}: dense and {session.config.method} from the same seed",
        session.about,
        session.config.method,
        dense,
        fast,
        figures,
        pair.fast.rows,
        f"Dense and {session.config.method}: {seconds} ({runs}).",
        start,
        truth,
        pair.denoiser,
    )


def psnr_text(psnr: float) -> str:
    """``"38.2 dB"``, or ``"equal"`` where no pixel differs."""
    return "equal" if math.isinf(psnr) else f"{psnr:.1f} dB"
