"""Composing and writing: what is written can be read back with its size and frames, and nothing is cut."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor

from diffcache.errors import ConfigError
from diffcache.hooks.stats import SegmentStats, Stats
from diffcache.media import (
    Clip,
    Comparison,
    StripRow,
    as_frames,
    brighten_depth,
    check_target,
    clip_frames,
    comparison_frames,
    comparison_sheet,
    computed_share,
    film_sheet,
    read_output,
    strip_rows,
    write,
)
from diffcache.media.drawing import COMPUTED, MARGIN, PAPER, PREDICTED, plain, shorten, text_width
from diffcache.media.frames import difference, pick, to_image, visible_size
from diffcache.media.request import Request, build_call, example_command
from diffcache.media.session import method_config
from diffcache.zoo import list_models

RNG = np.random.default_rng(0)


def noise(count: int, height: int = 48, width: int = 64) -> np.ndarray:
    return RNG.random((count, height, width, 3), dtype=np.float32)


def comparison(count: int, depth: bool = False, rows: int = 2, steps: int = 50, **more) -> Comparison:
    frames = noise(count)
    shade = noise(count) if depth else None
    strips = [StripRow(f"chunk {i + 1}", ("FFFcc" * steps)[:steps]) for i in range(rows)]
    figures = [("2.31x", "denoiser speed-up"), ("2.20x", "pipeline speed-up"), ("38.2 dB", "PSNR against dense")]
    dense, fast = Clip(frames, shade), Clip(np.clip(frames + 0.05, 0, 1), shade)
    return Comparison("a title", "a subtitle", "worldcache", dense, fast, figures, strips, "a footnote", **more)


def pictures(count: int, size: tuple[int, int] = (64, 48)) -> list[Image.Image]:
    return [Image.new("RGB", size, (40 * i, 255 - 40 * i, 80)) for i in range(count)]


def margins_are_blank(image: Image.Image) -> bool:
    """Whether nothing was drawn in the outer 8 pixels: what is too wide would reach the border."""
    border = np.asarray(image).astype(int).copy()
    border[8:-8, 8:-8] = 255
    return bool((border == 255).all()) and PAPER == "#ffffff"


# -- frames ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "shape"),
    [
        (noise(5)[None], (5, 48, 64, 3)),
        ([list(noise(5))], (5, 48, 64, 3)),
        ([pictures(5)], (5, 48, 64, 3)),
        (pictures(1), (1, 48, 64, 3)),
        (noise(1), (1, 48, 64, 3)),
        (torch.rand(1, 5, 3, 48, 64), (5, 48, 64, 3)),
        (torch.rand(1, 3, 48, 64), (1, 48, 64, 3)),
        ((noise(2) * 255).astype(np.uint8)[None], (2, 48, 64, 3)),
    ],
)
def test_every_kind_of_pipeline_output_becomes_frames(output, shape):
    frames = as_frames(output, batched=True)
    assert frames.shape == shape
    assert frames.dtype == np.float32
    assert 0 <= frames.min() <= frames.max() <= 1


def test_depth_comes_with_the_frames():
    class Output:
        frames, depth = noise(3)[None], RNG.random((1, 3, 48, 64), dtype=np.float32)

    clip = read_output(Output())
    assert clip.frames.shape == clip.depth.shape == (3, 48, 64, 3)
    assert np.array_equal(clip.depth[..., 0], Output.depth[0])


def test_not_a_number_becomes_black():
    frames = noise(1)
    frames[0, 0, 0] = np.nan
    assert np.array_equal(as_frames(frames)[0, 0, 0], [0, 0, 0])


def test_difference_has_a_gain_that_hardly_clips():
    a = noise(2)
    shown, gain = difference(a, np.clip(a + 0.01, 0, 1))
    assert gain == 64
    assert shown.max() <= 1
    assert difference(a, a)[1] == 1


def test_depths_share_one_scale():
    depths = [np.full((1, 2, 2, 3), value) for value in (0.2, 0.1, 0.4)]
    clips = brighten_depth([*(Clip(noise(1), depth) for depth in depths), None, Clip(noise(1))])
    assert [c and c.depth is not None and round(float(c.depth.max()), 6) for c in clips] == [1.0, 0.5, 1.0, None, False]


def test_small_frames_grow_and_large_ones_stay():
    assert visible_size(64, 48) == (256, 192)
    assert visible_size(832, 480) == (832, 480)
    assert pick(81, 8)[0] == 0
    assert pick(81, 8)[-1] == 80
    assert len(pick(81, 8)) == 8


# -- writing -----------------------------------------------------------------------------------------------------------


def test_png_round_trip(tmp_path):
    image = to_image(noise(1)[0])
    write(tmp_path / "a.png", [image])
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), np.asarray(image))


def test_gif_has_every_frame_its_size_and_its_pace(tmp_path):
    write(tmp_path / "a.gif", pictures(6), fps=10)
    with Image.open(tmp_path / "a.gif") as image:
        assert (image.n_frames, image.size, image.info["duration"]) == (6, (64, 48), 100)


def test_gif_keeps_the_paper_white_and_the_strip_in_its_shades(tmp_path):
    frames = comparison_frames(comparison(4))
    write(tmp_path / "a.gif", frames)
    with Image.open(tmp_path / "a.gif") as image:
        image.seek(2)
        shown = np.asarray(image.convert("RGB"))
    drawn = np.asarray(frames[2])
    for color in (PAPER, COMPUTED, PREDICTED):
        places = (drawn == ImageColor.getrgb(color)).all(-1)
        assert places.sum() > 1000
        assert (shown[places] == ImageColor.getrgb(color)).all(-1).mean() > 0.99


@pytest.mark.parametrize("size", [(64, 48), (63, 47)])
def test_mp4_has_every_frame_and_even_sides(tmp_path, size):
    import av

    write(tmp_path / "a.mp4", pictures(6, size), fps=8)
    with av.open(str(tmp_path / "a.mp4")) as container:
        frames = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
        assert container.streams.video[0].average_rate == 8
    assert len(frames) == 6
    assert frames[0].shape == (48, 64, 3)
    assert np.abs(frames[5][10:40, 10:50].astype(int) - (200, 55, 80)).max() < 24


def test_targets_are_checked_before_work(tmp_path):
    assert check_target(tmp_path / "new" / "a.GIF").parent.is_dir()
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.png").mkdir()
    for bad, expected in [
        ("a.bmp", r"'.bmp', must end in .png, .gif or .mp4"),
        ("a", "no suffix"),
        ("file/a.png", "cannot be written"),
        ("folder.png", "is a folder"),
    ]:
        with pytest.raises(ConfigError, match=f"^out: .*{expected}"):
            check_target(tmp_path / bad)


# -- pictures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 9, 24])
@pytest.mark.parametrize("depth", [False, True])
def test_sheet_keeps_its_margins(count, depth):
    assert margins_are_blank(comparison_sheet(comparison(count, depth)))


@pytest.mark.parametrize(("rows", "steps"), [(1, 4), (3, 50), (12, 1000)])
def test_strip_fits_for_few_and_many_steps(rows, steps):
    assert margins_are_blank(comparison_sheet(comparison(2, rows=rows, steps=steps)))
    assert margins_are_blank(comparison_frames(comparison(2, rows=rows, steps=steps))[0])


def test_long_captions_are_cut_not_drawn_over_the_border():
    words = "a very long prompt that never seems to end " * 20
    c = comparison(3)
    long = Comparison(words, words, c.method, c.dense, c.fast, c.figures, c.rows, words)
    assert margins_are_blank(comparison_sheet(long))
    assert margins_are_blank(comparison_frames(long)[0])
    assert text_width(shorten(words, 15, 300), 15) <= 300


def test_start_and_truth_add_a_column_and_a_row():
    bare = comparison_sheet(comparison(8))
    more = comparison_sheet(comparison(8, start=Clip(noise(1)), truth=Clip(noise(8))))
    assert more.height > bare.height
    assert margins_are_blank(more)


def test_comparison_animates_every_frame_at_one_even_size():
    frames = comparison_frames(comparison(5, depth=True, truth=Clip(noise(5))))
    assert len(frames) == 5
    assert len({f.size for f in frames}) == 1
    assert all(n % 2 == 0 for n in frames[0].size)
    assert frames[0].tobytes() != frames[1].tobytes()
    assert margins_are_blank(frames[0])


def test_a_single_picture_is_written_as_it_is_and_a_clip_as_a_film():
    frames = noise(9)
    assert film_sheet(Clip(frames[:1]), "caption").size == (64, 48)
    assert film_sheet(Clip(frames), "caption").width > 8 * 64
    assert clip_frames(Clip(frames))[0].size == (256, 192)
    assert clip_frames(Clip(frames, frames))[0].size == (512, 192)


def test_shades_differ_in_lightness_for_those_who_see_no_colour():
    grey = [Image.new("RGB", (1, 1), c).convert("L").getpixel((0, 0)) for c in (COMPUTED, PREDICTED)]
    assert grey[1] - grey[0] > 120


def test_strip_draws_one_cell_a_step():
    image = np.asarray(comparison_sheet(comparison(2, rows=1, steps=50)))
    strip = [int(c, 16) for c in (PREDICTED[1:3], PREDICTED[3:5], PREDICTED[5:])]
    line = max((row for row in image), key=lambda row: (row == strip).all(-1).sum())
    cells = np.diff((line == strip).all(-1).astype(int)) == 1
    assert cells.sum() == 20  # 50 steps of FFFcc
    assert np.asarray(image)[:, : MARGIN - 1].min() == 255


def test_characters_that_the_font_lacks_do_not_become_boxes():
    assert plain("a \u00d7 b \u2013 \u732b") == "a x b - ?"


# -- strips ------------------------------------------------------------------------------------------------------------


def trajectory(*branches: tuple[str, str, str]) -> Stats:
    segments = [SegmentStats(e, b, d, d.count("F"), d.count("c"), 0, 1, 1, 0, 0, 0) for e, b, d in branches]
    return Stats("worldcache", 4, segments)


def test_strip_names_only_what_is_several():
    assert [r.label for r in strip_rows([trajectory(("transformer", "cond", "FFcc"))])] == ["cond"]
    two = trajectory(("transformer", "cond", "FFcc"), ("transformer", "uncond", "FFcc"))
    assert [r.label for r in strip_rows([two])] == ["cond", "uncond"]
    chunks = [trajectory(("transformer", "cond", "FFcc"))] * 2
    assert [r.label for r in strip_rows(chunks)] == ["chunk 1", "chunk 2"]
    experts = trajectory(("transformer", "cond", "FF--"), ("transformer_2", "cond", "--Fc"))
    assert [r.label for r in strip_rows([experts])] == ["transformer", "transformer_2"]
    assert computed_share(strip_rows([experts])) == "3 of 4 denoiser calls computed"


# -- requests ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("steps", 0, "steps: 0 is out of range"),
        ("width", -8, "width: -8 is out of range"),
        ("seed", -1, "seed: -1 is out of range"),
        ("guidance", float("nan"), "guidance: nan is out of range"),
        ("actions", "F8Z", "actions: unknown 'Z' at position 3"),
        ("clip", -1, "clip: -1 is out of range"),
    ],
)
def test_requests_name_field_and_value(field, value, expected):
    with pytest.raises(ConfigError, match=f"^{expected}"):
        Request(**{field: value})


def test_settings_win_over_the_method_string_and_presets():
    config = method_config("worldcache:aether", ["max_skip=3"])
    assert config.faithful
    assert config.max_skip == 3
    assert method_config("worldcache:max_skip=5", ["max_skip=3"]).max_skip == 3
    assert method_config("worldcache", ["modalities=[16, 16, 24]"]).modalities == (16, 16, 24)
    for bad in ("max_skip", "=3", "max_skip=[1"):
        with pytest.raises(ConfigError):
            method_config("worldcache", [bad])
    with pytest.raises(ConfigError, match="max_skip"):
        method_config("worldcache:max_skip=[1", [])


def test_options_are_fitted_to_the_pipeline(tmp_path):
    class Pipe:
        def __call__(self, prompt=None, num_inference_steps=50, guidance_scale=5.0, output_type="pil"):
            raise NotImplementedError

    call = build_call(Pipe(), Request(prompt="a cat", steps=4, guidance=2.0), None, tmp_path)
    assert call.arguments == {
        "prompt": "a cat",
        "num_inference_steps": 4,
        "guidance_scale": 2.0,
        "output_type": "np",
    }
    with pytest.raises(ConfigError, match=r"^actions: 'F8' cannot be used, Pipe takes no actions"):
        build_call(Pipe(), Request(prompt="a cat", actions="F8"), None, tmp_path)
    with pytest.raises(ConfigError, match=r"^prompt: none given"):
        build_call(Pipe(), Request(), None, tmp_path)


def test_every_model_has_an_example():
    commands = [example_command(entry) for entry in list_models().values()]
    assert all(c.startswith("diffcache sample --model ") for c in commands)
