"""Write trained components as fp16 safetensors with their configs, as the package embeds them.

    python samples/export.py tiny-world --run runs/tiny-world --data data/vizdoom
    python samples/export.py tiny-wan --run runs/tiny-wan
    python samples/export.py tiny-dit --run runs/tiny-dit
    python samples/export.py tiny-llada --run runs/tiny-llada
    python samples/export.py tiny-sdar --run runs/tiny-sdar

The weights are the EMA of the run's latest checkpoint, so this also works while the training still runs.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
import train_tiny_dit
import train_tiny_world
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from eval_tiny_world import heldout
from language_training import load_run
from prepare_emoji import NAMES
from safetensors.torch import save_file
from train_tiny_wan import TextToVideo

from diffcache.zoo.autoencoder import AutoencoderBlockPCA, AutoencoderImagePCA
from diffcache.zoo.loading import MANIFEST, WEIGHTS, file_digest
from diffcache.zoo.wan import make_tokenizer

CLIPS = 16
LANGUAGE = ("tiny-llada", "tiny-sdar")
INDEX = {
    "tiny-world": {
        "pipeline_class": "diffcache.zoo.world:WorldPipeline",
        "vae": ["diffcache.zoo.autoencoder", "AutoencoderBlockPCA"],
        "depth_vae": ["diffcache.zoo.autoencoder", "AutoencoderBlockPCA"],
        "transformer": ["diffusers", "CogVideoXTransformer3DModel"],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    },
    "tiny-wan": {
        "pipeline_class": "diffusers:WanPipeline",
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "vae": ["diffcache.zoo.autoencoder", "AutoencoderBlockPCA"],
        "transformer": ["diffusers", "WanTransformer3DModel"],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    },
    "tiny-dit": {
        "pipeline_class": "diffusers:DiTPipeline",
        "vae": ["diffcache.zoo.autoencoder", "AutoencoderImagePCA"],
        "transformer": ["diffusers", "DiTTransformer2DModel"],
        "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
        "id2label": dict(enumerate(NAMES)),
    },
}


def average(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "resume.pt", weights_only=True)["ema"]


def export_world(run: Path, out: Path, data: Path, shift: float) -> None:
    transformer = train_tiny_world.make_transformer()
    transformer.load_state_dict(average(run))
    transformer.half().save_pretrained(out / "transformer")
    for name in ("vae", "depth_vae"):
        AutoencoderBlockPCA.from_pretrained(run / name).half().save_pretrained(out / name)
    FlowMatchEulerDiscreteScheduler(shift=shift).save_pretrained(out / "scheduler")
    save_file(heldout(data / "heldout", CLIPS), out / "clips.safetensors")


def export_wan(run: Path, out: Path, shift: float) -> None:
    tokenizer = make_tokenizer()
    model = TextToVideo(len(tokenizer))
    model.load_state_dict(average(run))
    model.half()
    model.transformer.save_pretrained(out / "transformer")
    model.text_encoder.save_pretrained(out / "text_encoder")
    tokenizer.save_pretrained(out / "tokenizer")
    AutoencoderBlockPCA.from_pretrained(run / "vae").half().save_pretrained(out / "vae")
    FlowMatchEulerDiscreteScheduler(shift=shift).save_pretrained(out / "scheduler")


def export_dit(run: Path, out: Path, shift: float) -> None:
    transformer = train_tiny_dit.make_transformer()
    transformer.load_state_dict(average(run))
    transformer.half().save_pretrained(out / "transformer")
    AutoencoderImagePCA.from_pretrained(run / "vae").half().save_pretrained(out / "vae")
    # DiTPipeline calls `scale_model_input`, which the flow sampler lacks; of order 1 this one takes the same steps.
    scheduler = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift, solver_order=1
    )
    scheduler.save_pretrained(out / "scheduler")


def export_language(run: Path, out: Path) -> None:
    model, tokenizer = load_run(run)
    model.half().save_pretrained(out)
    tokenizer.save_pretrained(out)


def seal(out: Path, name: str) -> None:
    """Write the index of components and the digests that the loader checks."""
    for config in out.rglob("*.json"):
        # Configs remember the folder they were loaded from; that is nobody's business.
        content = json.loads(config.read_text())
        content.pop("_name_or_path", None)
        config.write_text(json.dumps(content, indent=2) + "\n")
    if name in INDEX:
        (out / "model_index.json").write_text(json.dumps(INDEX[name], indent=2) + "\n")
    for path in out.rglob("*.safetensors"):
        path.chmod(0o644)
    files = sorted(p for p in out.rglob("*") if p.is_file() and p.name != MANIFEST)
    digests = {p.relative_to(out).as_posix(): file_digest(p) for p in files}
    (out / MANIFEST).write_text(json.dumps(digests, indent=2) + "\n")
    print(f"{name}: {sum(p.stat().st_size for p in files) / 1e6:.1f} MB in {len(files)} files -> {out}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=sorted([*INDEX, *LANGUAGE]))
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=Path("data/vizdoom"))
    parser.add_argument("--shift", type=float, default=1.0, help="time shift of the scheduler")
    parser.add_argument("--out", type=Path, default=None, help="default: the package's own weights")
    args = parser.parse_args()
    out = args.out or WEIGHTS / args.name
    if args.name == "tiny-world":
        export_world(args.run, out, args.data, args.shift)
    elif args.name == "tiny-wan":
        export_wan(args.run, out, args.shift)
    elif args.name in LANGUAGE:
        export_language(args.run, out)
    else:
        export_dit(args.run, out, args.shift)
    seal(out, args.name)


if __name__ == "__main__":
    main()
