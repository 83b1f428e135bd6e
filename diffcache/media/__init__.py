"""From a pipeline to pictures: calling it, comparing it with dense sampling, composing and writing PNG, GIF, MP4."""

from .animation import clip_frames, comparison_frames
from .comparison import Comparison
from .frames import Clip, as_frames, brighten_depth, read_output
from .sheet import comparison_sheet, film_sheet
from .strip import StripRow, computed_share, draw_strip, strip_rows
from .writing import SUFFIXES, check_target, write

__all__ = [
    "SUFFIXES",
    "Clip",
    "Comparison",
    "StripRow",
    "as_frames",
    "brighten_depth",
    "check_target",
    "clip_frames",
    "comparison_frames",
    "comparison_sheet",
    "computed_share",
    "draw_strip",
    "film_sheet",
    "read_output",
    "strip_rows",
    "write",
]
