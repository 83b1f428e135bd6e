"""Laws of the embedded models: they load, generate what their entry says, repeat by seed, and fail in one line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from diffcache.errors import ConfigError
from diffcache.media.request import Request, build_call
from diffcache.zoo import ModelNotAvailableError, ZooEntry, list_models, load_language_model, load_pipeline, loading
from diffcache.zoo.autoencoder import AutoencoderImagePCA
from diffcache.zoo.wan import MOTIONS, make_tokenizer
from diffcache.zoo.world import ACTIONS, parse_actions

EMBEDDED = [name for name, entry in list_models().items() if entry.embedded]


@pytest.fixture(scope="module")
def world():
    pipeline = load_pipeline("tiny-world")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def wan():
    pipeline = load_pipeline("tiny-wan")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def clips() -> dict[str, torch.Tensor]:
    return load_file(loading.WEIGHTS / "tiny-world" / "clips.safetensors")


def context(clips, count: int = 1) -> dict:
    actions = ["".join(ACTIONS[k] for k in row[:8]) for row in clips["actions"][:count].tolist()]
    return {"image": clips["context_rgb"][:count].numpy(), "depth": clips["context_depth"][:count].numpy()} | {
        "actions": actions
    }


def call_wan(pipeline, seed: int = 0, **overrides):
    entry = list_models()["tiny-wan"]
    arguments = {"height": entry.height, "width": entry.width, "num_frames": entry.num_frames, **entry.call}
    arguments |= {"guidance_scale": entry.guidance_scale, "num_inference_steps": 4, "output_type": "np", **overrides}
    return pipeline("the player turns left", generator=torch.Generator().manual_seed(seed), **arguments).frames


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(-10 * np.log10(np.square(a - b).mean()))


def test_list_models_imports_nothing_heavy():
    code = "import sys, diffcache.zoo as z; z.list_models(); print('diffcache.zoo.world' in sys.modules)"
    heavy = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert heavy.stdout.strip() == "False"


def test_entries_are_complete():
    import diffusers

    from diffcache.zoo.world import WorldPipeline

    assert set(EMBEDDED) == {"tiny-world", "tiny-wan", "tiny-dit"}
    for name, entry in list_models().items():
        assert isinstance(entry, ZooEntry)
        assert entry.name == name
        assert entry.pipeline == WorldPipeline.__name__ or hasattr(diffusers, entry.pipeline)
        assert entry.embedded or entry.source.count("/") == 1
        assert min(entry.height, entry.width, entry.num_frames, entry.num_inference_steps) >= 1


def test_weights_are_small():
    size = sum(p.stat().st_size for p in loading.WEIGHTS.rglob("*") if p.is_file())
    assert size <= 40e6


def test_nothing_is_pickled():
    suffixes = {p.suffix for p in loading.WEIGHTS.rglob("*") if p.is_file()}
    assert suffixes == {".json", ".md", ".safetensors"}


def test_world_shapes_in_every_output_type(world, clips):
    arguments = context(clips, 2) | {"actions": "F3L6", "num_inference_steps": 2}
    made = {kind: world(**arguments, output_type=kind) for kind in ("np", "pt", "pil")}
    assert made["np"].frames.shape == (2, 9, 48, 64, 3)
    assert made["np"].depth.shape == (2, 9, 48, 64)
    assert made["pt"].frames.shape == (2, 9, 3, 48, 64)
    assert made["pil"].frames[1][8].size == (64, 48)
    assert made["pil"].depth[0][0].mode == "L"
    assert 0 <= made["np"].frames.min() <= made["np"].frames.max() <= 1


def test_world_repeats_by_seed_and_differs_by_seed(world, clips):
    def run(seed: int) -> np.ndarray:
        generator = torch.Generator().manual_seed(seed)
        return world(**context(clips), num_inference_steps=4, generator=generator, output_type="np").frames

    assert np.array_equal(run(0), run(0))
    assert not np.allclose(run(0), run(1))


def test_world_batch_equals_single_runs(world, clips):
    arguments = context(clips, 2)
    seeds = [torch.Generator().manual_seed(s) for s in (5, 6)]
    both = world(**arguments, num_inference_steps=3, generator=seeds, output_type="np").frames
    one = {"image": arguments["image"][1:], "depth": arguments["depth"][1:], "actions": arguments["actions"][1]}
    single = world(**one, num_inference_steps=3, generator=torch.Generator().manual_seed(6), output_type="np").frames
    assert np.allclose(both[1], single[0], atol=1e-4)


def test_world_callback_counts_through_chunks(world, clips):
    seen = []

    def note(pipe, step, t, tensors):
        seen.append((step, tuple(tensors["latents"].shape)))
        return {}

    arguments = context(clips) | {"actions": "F8L8"}
    world(**arguments, num_inference_steps=3, callback_on_step_end=note, output_type="np")
    assert [step for step, _ in seen] == list(range(6))
    assert seen[0][1] == (1, 5, 64, 6, 8)


def test_world_takes_one_picture_without_depth(world, clips):
    from PIL import Image

    picture = Image.fromarray(clips["context_rgb"][0, 1].numpy()).resize((160, 120))
    made = world(picture, actions=["F8", "L8"], num_inference_steps=2)
    assert len(made.frames) == 2
    assert len(made.frames[0]) == 8


def test_world_actions_matter(world, clips):
    arguments = context(clips) | {"actions": ["L8", "R8"], "num_inference_steps": 4, "output_type": "np"}
    left, right = world(**arguments, generator=[torch.Generator().manual_seed(0) for _ in range(2)]).frames
    assert psnr(left, right) < 30


def test_world_beats_repeating_the_last_frame(world, clips):
    # All 16 clips: the margin varies a lot between clips, and the first four hardly move.
    generator = torch.Generator().manual_seed(0)
    made = world(**context(clips, 16), num_inference_steps=10, generator=generator, output_type="np")
    for name, frames in (("rgb", made.frames), ("depth", made.depth)):
        true = clips[name][:, :8].numpy() / 255
        last = np.broadcast_to(clips[f"context_{name}"][:, -1:].numpy() / 255, true.shape)
        assert psnr(frames, true) > psnr(last, true), name


def test_world_rejects_what_does_not_fit(world, clips):
    with pytest.raises(ValueError, match="one length"):
        world(**context(clips) | {"actions": ["F8", "F4"]})
    with pytest.raises(ValueError, match="3 action strings"):
        world(**context(clips, 2) | {"actions": ["F8"] * 3})
    with pytest.raises(ValueError, match="num_inference_steps"):
        world(**context(clips), num_inference_steps=0)
    with pytest.raises(ValueError, match="one or two frames"):
        world(np.zeros((3, 48, 64, 3), np.uint8))


def test_wan_is_the_real_pipeline_and_generates(wan):
    from diffusers import WanPipeline, WanTransformer3DModel
    from transformers import UMT5EncoderModel

    assert type(wan) is WanPipeline
    assert type(wan.transformer) is WanTransformer3DModel
    assert type(wan.text_encoder) is UMT5EncoderModel
    assert wan.transformer.dtype == torch.float32
    first = call_wan(wan)
    assert first.shape == (1, 9, 48, 64, 3)
    assert np.array_equal(first, call_wan(wan))
    assert not np.allclose(first, call_wan(wan, seed=1))


def test_tokenizer_knows_its_prompts(wan):
    for prompts in MOTIONS.values():
        for prompt in prompts:
            ids = wan.tokenizer(prompt).input_ids
            assert wan.tokenizer.unk_token_id not in ids
            assert ids == make_tokenizer()(prompt).input_ids
    assert len(wan.tokenizer("").input_ids) == 1


def test_what_ships_loads_without_a_bar_and_bars_are_as_before(capfd):
    from transformers.utils import logging

    for before in (True, False):
        (logging.enable_progress_bar if before else logging.disable_progress_bar)()
        load_pipeline("tiny-wan")
        load_language_model("tiny-llada")
        assert logging.is_progress_bar_enabled() is before
    logging.enable_progress_bar()
    assert capfd.readouterr() == ("", "")


def test_dtype_is_passed_on():
    pipeline = load_pipeline("tiny-world", torch_dtype=torch.bfloat16, device="cpu")
    assert pipeline.transformer.dtype == pipeline.vae.dtype == torch.bfloat16


def test_autoencoders_round_trip(world, wan, clips):
    rgb = clips["rgb"][:4, :9].permute(0, 4, 1, 2, 3).float() / 127.5 - 1
    depth = clips["depth"][:4, None, :8].float() / 127.5 - 1
    for vae, x, floor in ((wan.vae, rgb, 30), (world.vae, rgb[:, :, :8], 30), (world.depth_vae, depth, 30)):
        z = vae.encode(x).latent_dist.mode()
        assert z.shape == (4, vae.config.z_dim, (x.shape[2] + 1) // 2, 6, 8)
        back = vae.decode(vae.denormalize(vae.normalize(z)), return_dict=False)[0]
        assert back.shape == x.shape
        assert psnr(back.numpy() / 2, x.numpy() / 2) > floor


def test_picture_autoencoder_normalises_itself(clips):
    x = clips["rgb"][:, :4].flatten(0, 1).permute(0, 3, 1, 2).float() / 127.5 - 1
    blocks = AutoencoderImagePCA().blocks(x[:, :, None]).permute(0, 2, 3, 4, 1).flatten(0, 3)
    vae = AutoencoderImagePCA.fit(blocks, 48, power=0.5)
    z = vae.encode(x).latent_dist.mode()
    assert z.shape == (len(x), 48, 6, 8)
    assert z.square().mean().item() == pytest.approx(1, abs=0.1)
    back = vae.decode(z / vae.config.scaling_factor).sample
    assert back.shape == x.shape
    assert psnr(back.numpy() / 2, x.numpy() / 2) > 30


class Named:
    """A class-to-image pipeline that names its classes."""

    labels = {"faces": 3, "Great white": 5}

    def __call__(self, class_labels, guidance_scale=4.0, num_inference_steps=50):
        """Never called."""


@pytest.mark.parametrize(
    ("text", "number", "name"), [("faces", 3, "faces"), ("great White", 5, "Great white"), ("3", 3, "faces")]
)
def test_classes_by_name_and_by_number(text, number, name):
    call = build_call(Named(), Request(prompt=text), None, loading.WEIGHTS)
    assert call.arguments["class_labels"] == [number]
    assert call.about == f'"{name}"'


def test_the_zoo_may_name_a_default_class():
    entry = replace(list_models()["dit-xl-256"], call={"class_labels": [5]})
    call = build_call(Named(), Request(), entry, loading.WEIGHTS)
    assert call.arguments["class_labels"] == [5]
    assert call.about == '"Great white"'


@pytest.mark.parametrize("text", ["faecs", "4"])
def test_an_unknown_class_names_the_known_ones(text):
    with pytest.raises(ConfigError, match="unknown class") as caught:
        build_call(Named(), Request(prompt=text), None, loading.WEIGHTS)
    assert "faces" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "indices"),
    [("F", [1]), ("f3", [1, 1, 1]), ("F2L1 r2,n", [1, 1, 3, 4, 4, 0]), ("BAD", [2, 5, 6]), ("F 8", [1] * 8)],
)
def test_parse_actions(text, indices):
    assert parse_actions(text) == indices


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("F8X2", "'X' at position 3"),
        ("3F", "'3' at position 1"),
        ("F8-", "'-' at position 3"),
        ("F0", "count 0 at position 1"),
        ("L99999", "count 99999 at position 1"),
        ("", "empty"),
        ("  ", "empty"),
    ],
)
def test_parse_actions_errors_are_one_line(text, part):
    with pytest.raises(ValueError, match="actions") as caught:
        parse_actions(text)
    message = str(caught.value)
    assert part in message
    assert "\n" not in message
    assert "count" in part or "F (forward)" in message


def one_line(function, *args) -> str:
    with pytest.raises(ModelNotAvailableError) as caught:
        function(*args)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", EMBEDDED)
def test_damaged_files_are_named_in_one_line(name, tmp_path, monkeypatch):
    shutil.copytree(loading.WEIGHTS / name, tmp_path / name)
    monkeypatch.setattr(loading, "WEIGHTS", tmp_path)
    weights = tmp_path / name / "transformer" / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    assert "diffusion_pytorch_model.safetensors: the file is damaged; reinstall" in one_line(load_pipeline, name)
    weights.unlink()
    assert "diffusion_pytorch_model.safetensors: the file is missing; reinstall" in one_line(load_pipeline, name)
    weights.write_bytes(whole)
    config = tmp_path / name / "scheduler" / "scheduler_config.json"
    config.write_text("{")
    assert "scheduler_config.json: the file is damaged" in one_line(load_pipeline, name)
    (tmp_path / name / loading.MANIFEST).unlink()
    assert loading.MANIFEST in one_line(load_pipeline, name)


def test_an_exported_folder_loads_by_its_path(tmp_path):
    shutil.copytree(loading.WEIGHTS / "tiny-world", tmp_path / "mine")
    assert type(load_pipeline(str(tmp_path / "mine"))).__name__ == "WorldPipeline"


def test_settings_of_a_pipeline_come_from_its_index(tmp_path):
    folder = tmp_path / "mine"
    shutil.copytree(loading.WEIGHTS / "tiny-wan", folder)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "boundary_ratio": 0.9, "not_of_this_pipeline": 1}))
    manifest = json.loads((folder / loading.MANIFEST).read_text())
    manifest["model_index.json"] = loading.file_digest(folder / "model_index.json")
    (folder / loading.MANIFEST).write_text(json.dumps(manifest))
    assert load_pipeline(str(folder)).config.boundary_ratio == 0.9


def test_an_index_cannot_import_other_libraries(tmp_path):
    with pytest.raises(ModelNotAvailableError, match="not loaded"):
        loading._find_class("os", "system")


def test_unknown_names_list_the_closest_first():
    message = one_line(load_pipeline, "tiny-wann")
    assert "tiny-wann" in message
    assert message.index("tiny-wan'") < message.index("cogvideox-5b")


def test_a_hub_model_that_cannot_be_fetched_names_the_embedded_one(monkeypatch):
    from diffusers import WanPipeline

    def fail(*args, **kwargs):
        raise OSError("cannot load\nthe model") from ConnectionError("no route")

    monkeypatch.setattr(WanPipeline, "from_pretrained", fail)
    message = one_line(load_pipeline, "wan2.1")
    assert "wan2.1" in message
    assert "hub cannot be reached" in message
    assert "try --model tiny-wan" in message


def test_a_folder_without_a_model_is_one_line(tmp_path):
    empty: Path = tmp_path / "empty"
    empty.mkdir()
    assert "try --model tiny-wan" in one_line(load_pipeline, str(empty))


@pytest.fixture(scope="module")
def dit():
    pipeline = load_pipeline("tiny-dit")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def call_dit(pipeline, labels: list[int], seed: int = 0, **overrides) -> np.ndarray:
    arguments = {"guidance_scale": list_models()["tiny-dit"].guidance_scale, "num_inference_steps": 12} | overrides
    return pipeline(labels, generator=torch.Generator().manual_seed(seed), output_type="np", **arguments).images


def test_dit_is_the_real_pipeline_and_generates(dit):
    from diffusers import DiTPipeline, DiTTransformer2DModel

    assert type(dit) is DiTPipeline
    assert type(dit.transformer) is DiTTransformer2DModel
    entry = list_models()["tiny-dit"]
    first = call_dit(dit, [0, 1], num_inference_steps=3)
    assert first.shape == (2, entry.height, entry.width, 3)
    assert np.array_equal(first, call_dit(dit, [0, 1], num_inference_steps=3))
    assert not np.allclose(first, call_dit(dit, [0, 1], seed=1, num_inference_steps=3))
    assert call_dit(dit, [2], num_inference_steps=2, guidance_scale=1.0).shape == (1, entry.height, entry.width, 3)


def test_dit_draws_what_its_classes_are(dit):
    """Hearts and faces stand on white; faces are yellow in the middle, flags fill the width."""
    names = ["faces", "flags"]
    faces, flags = np.split(call_dit(dit, [k for k in dit.get_label_ids(names) for _ in range(8)]), 2)
    corners = faces[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert corners.mean() > 0.9
    red, _, blue = faces[:, 24:40, 24:40].mean((0, 1, 2))
    assert red > blue + 0.2
    assert np.median(flags[:, 28:36, :8].mean((1, 2, 3))) < 0.9


def test_dit_repeats_its_autoencoder(dit, clips):
    x = clips["rgb"][:4, 0].permute(0, 3, 1, 2).float() / 127.5 - 1
    z = dit.vae.encode(x).latent_dist.mode()
    assert z.shape == (4, dit.transformer.config.in_channels, 6, 8)
    back = dit.vae.decode(z).sample
    assert back.shape == x.shape
    assert psnr(back.numpy() / 2, x.numpy() / 2) > 24
