"""Real pictures for tiny-dit: three emoji sets, composited on white, with a class each, split into train and held-out.

    python samples/prepare_emoji.py --out data/emoji

The sets are npm packages, fetched with ``npm pack`` (npm as it is set up on this computer): Noto (Apache-2.0),
Twemoji (CC-BY-4.0) and Fluent 3D (MIT). Needs npm, and about 150 MB below ``--out``.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

# package, version, and where the picture of an emoji lies in it
SETS = (
    ("emoji-datasource-google", "16.0.0", "package/img/google/64/{}.png"),
    ("emoji-datasource-twitter", "16.0.0", "package/img/twitter/64/{}.png"),
    ("@lobehub/fluent-emoji-3d", "1.1.0", "package/assets/{}.webp"),
)
# Class to Unicode's categories, or beginnings of category/subcategory; the first match counts. What resembles each
# other is one class, so that a class is something to draw and to recognise; the five bare skin tones have none.
CLASSES: dict[str, tuple[str, ...]] = {
    "hearts": ("Smileys & Emotion/heart",),
    "symbols": ("Symbols", "Smileys & Emotion/emotion"),
    "faces": ("Smileys & Emotion",),
    "hands": ("People & Body/hand", "People & Body/body-parts"),
    "people": ("People & Body",),
    "plants": ("Animals & Nature/plant",),
    "animals": ("Animals & Nature",),
    "food": ("Food & Drink",),
    "vehicles": ("Travel & Places/transport",),
    "sky": ("Travel & Places/sky",),
    "clocks": ("Travel & Places/time",),
    "places": ("Travel & Places",),
    "activities": ("Activities",),
    "objects": ("Objects",),
    "flags": ("Flags",),
}
NAMES = tuple(sorted(CLASSES))
# Skin tones, joiners, genders and the direction of a walk: what tells variants of one emoji apart.
VARIANT = {"1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff", "200d", "fe0f", "2640", "2642", "27a1"}
PERSON = {"1f468": "1f9d1", "1f469": "1f9d1"}
HELDOUT = 8  # one of so many base emoji is held out


def fetch(package: str, version: str, folder: Path) -> tarfile.TarFile:
    """The package's archive; one that lies in ``folder`` is not fetched again.

    Raises ``SystemExit`` where npm fails or the archive holds another package or version.
    """
    path = folder / f"{package.lstrip('@').replace('/', '-')}-{version}.tgz"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = ["npm", "pack", "--silent", f"{package}@{version}"]
        if subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL).returncode:
            raise SystemExit(f"{' '.join(command)}: failed")
    archive = tarfile.open(path)  # noqa: SIM115 (the caller reads it)
    about = json.load(archive.extractfile("package/package.json"))
    if (about["name"], about["version"]) != (package, version):
        raise SystemExit(f"{path.name} holds {about['name']} {about['version']}, expected {package} {version}")
    return archive


def find_class(category: str, subcategory: str) -> int | None:
    """Index into ``NAMES``, or None where the emoji belongs to no class."""
    place = f"{category}/{subcategory}"
    return next((NAMES.index(n) for n, starts in CLASSES.items() if place.startswith(starts)), None)


def base_of(image: str) -> str:
    """Code points of an emoji without gender and skin tone: its variants share it and never part in the split."""
    return "-".join(PERSON.get(code, code) for code in image.split("-") if code not in VARIANT)


def list_emoji(archive: tarfile.TarFile) -> Iterator[tuple[str, int]]:
    """(name of the picture without suffix, class), skin tones included."""
    for emoji in json.load(archive.extractfile("package/emoji.json")):
        label = find_class(emoji["category"], emoji["subcategory"])
        if label is not None:
            for variant in (emoji, *emoji.get("skin_variations", {}).values()):
                yield variant["image"].removesuffix(".png"), label


def read_picture(content: bytes, size: int) -> np.ndarray:
    """uint8 (size, size, 3), on white; composited before it is resized, or edges would turn dark."""
    picture = Image.open(io.BytesIO(content)).convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    picture = Image.alpha_composite(white, picture).convert("RGB")
    return np.asarray(picture.resize((size, size), Image.Resampling.LANCZOS))


def read_set(archive: tarfile.TarFile, form: str, emoji: list[tuple[str, int]], size: int) -> Iterator[tuple]:
    """(picture, class, base) of every emoji that the set has; members are read in the archive's own order."""
    wanted = {form.format(image): (label, base_of(image)) for image, label in emoji}
    for member in archive:
        if member.name in wanted:
            yield (read_picture(archive.extractfile(member).read(), size), *wanted[member.name])


def choose_heldout(labels: np.ndarray, bases: np.ndarray) -> np.ndarray:
    """True for all pictures of one in ``HELDOUT`` base emoji of every class."""
    rng, chosen = np.random.default_rng(0), set()
    for k in range(len(NAMES)):
        mine = rng.permutation(np.unique(bases[labels == k]))
        chosen.update(mine[: -(-len(mine) // HELDOUT)].tolist())
    return np.array([base in chosen for base in bases])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("data/emoji"))
    parser.add_argument("--size", type=int, default=64, help="pixels")
    args = parser.parse_args()
    archives = [fetch(package, version, args.out / "packages") for package, version, _ in SETS]
    emoji = list(list_emoji(archives[0]))
    rows = [row for a, (_, _, form) in zip(archives, SETS, strict=True) for row in read_set(a, form, emoji, args.size)]
    pictures, labels, bases = (np.array(column) for column in zip(*rows, strict=True))
    heldout = choose_heldout(labels, bases)
    for split, mask in (("train", ~heldout), ("heldout", heldout)):
        folder = args.out / split
        folder.mkdir(parents=True, exist_ok=True)
        numbers = np.unique(bases[mask], return_inverse=True)[1]
        for name, values in (("pictures", pictures), ("labels", labels)):
            np.save(folder / f"{name}.npy", values[mask])
        np.save(folder / "bases.npy", numbers)
        counts = ", ".join(f"{n} {c}" for n, c in zip(NAMES, np.bincount(labels[mask]), strict=True))
        print(f"{split}: {mask.sum()} pictures of {numbers.max() + 1} emoji ({counts})")


if __name__ == "__main__":
    main()
