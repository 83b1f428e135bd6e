"""Writing pictures and videos: PNG, GIF and MP4 by suffix."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageColor

from ..errors import ConfigError
from .drawing import KEPT_COLORS
from .frames import side_by_side

SUFFIXES = (".png", ".gif", ".mp4")


def check_target(path: str | Path, suffixes: Sequence[str] = SUFFIXES) -> Path:
    """The path, once it is sure that a file can be written there; its folder is made where it is missing.

    Raises:
        ConfigError: the suffix is unknown, the path is a folder, or nothing can be written in its folder.
    """
    path = Path(path)
    if path.suffix.lower() not in suffixes:
        got = f"has the suffix '{path.suffix}'" if path.suffix else "has no suffix"
        *first, last = suffixes
        raise ConfigError(f"out: '{path}' {got}, must end in {', '.join(first)}{' or ' if first else ''}{last}")
    if path.is_dir():
        raise ConfigError(f"out: '{path}' is a folder, must be a file name")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
        if path.exists():
            path.open("ab").close()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ConfigError(f"out: '{path}' cannot be written ({reason}), must be in a folder that can be") from error
    return path


def write(path: str | Path, frames: Sequence[Image.Image], fps: float = 8.0) -> None:
    """Write RGB pictures of one size. PNG takes the first; GIF loops; MP4 is H.264 (MPEG-4 where that is missing).

    A file that was there is replaced as a whole.

    Args:
        path: ends in ``.png``, ``.gif`` or ``.mp4``.
        frames: one picture or more.
        fps: frames per second; GIF keeps whole hundredths of a second.

    Raises:
        ConfigError: another suffix.
        OSError: the file cannot be written.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ConfigError(f"out: '{path}' has the suffix '{path.suffix}', must end in {', '.join(SUFFIXES)}")
    beside = path.with_name(f".{path.stem}.{os.getpid()}{suffix}")
    try:
        if suffix == ".png":
            frames[0].save(beside, optimize=True)
        elif suffix == ".gif":
            _write_gif(beside, frames, fps)
        else:
            _write_mp4(beside, frames, fps)
        beside.replace(path)
    finally:  # an interruption leaves what was there
        beside.unlink(missing_ok=True)


def _write_gif(path: Path, frames: Sequence[Image.Image], fps: float) -> None:
    # One palette for all frames: what stands still stays the same to the bit, so it is stored once.
    palette = _palette([frames[i] for i in range(0, len(frames), -(-len(frames) // 8))])
    indexed = [f.convert("RGB").quantize(palette=palette) for f in frames]
    indexed[0].save(path, save_all=True, append_images=indexed[1:], duration=1000 / fps, loop=0)


def _palette(frames: Sequence[Image.Image]) -> Image.Image:
    """256 colours for all frames, the colours of our own marks exactly."""
    exact = [channel for color in KEPT_COLORS for channel in ImageColor.getrgb(color)]
    free = 256 - len(KEPT_COLORS)
    found = side_by_side(frames).quantize(free).getpalette() or []
    palette = Image.new("P", (1, 1))
    palette.putpalette(found[: 3 * free] + exact)
    return palette


def _write_mp4(path: Path, frames: Sequence[Image.Image], fps: float) -> None:
    from fractions import Fraction

    import av

    width, height = (n + n % 2 for n in frames[0].size)  # 4:2:0 chroma needs even sizes
    with av.open(str(path), "w") as container:
        codec = mp4_codec()
        stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1000))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        if codec == "libx264":
            stream.options = {"crf": "17"}
        else:
            stream.bit_rate = 8 * width * height
        for frame in frames:
            even = frame.convert("RGB")
            if even.size != (width, height):
                even = Image.new("RGB", (width, height), "white")
                even.paste(frame)
            container.mux(stream.encode(av.VideoFrame.from_image(even)))
        container.mux(stream.encode())


def mp4_codec() -> str:
    import av

    for name in ("libx264", "h264"):
        try:
            av.codec.Codec(name, "w")
        except ValueError:
            continue
        return name
    return "mpeg4"
