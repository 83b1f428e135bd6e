"""Writes ``docs/packing.md``, how far partial steps go on each class: ``python -m tests.denoisers.packing``."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import diffusers

from diffcache import NothingSkippedWarning, UnsupportedModelError, accelerate_model, restore
from diffcache.hooks.tokens import TokenSite

from . import DENOISERS
from .running import METHODS, model_of, run

WAYS = ("kernels", "rows", "modules")
PATH = Path(__file__).parents[2] / "docs" / "packing.md"

_HEAD = """# How partial steps run on each denoiser of diffusers {version}

Written by `python -m tests.denoisers.packing` from what the first computed step of a tiny random model of each class
shows; do not edit. What the columns mean: [partial.md](partial.md).

| column | blocks |
|---|---|
| kernels | whose norms are kernels G and F: {fused} classes have such |
| rows | that run on packed rows with norms of their own: {packed} classes |
| modules | whose modules run on rows one by one: {apart} classes |

A class may have blocks of several kinds. *Whole*: attention and feed-forward modules that mix tokens, or that no token
reaches (text), and are computed in full. *Parts*: attentions among the tokens that are run part by part with kernel P
(bias, norm and rotary positions of queries and keys, keys and values to their places) between the products, of all such
attentions: all of them in {formed} classes; the others run as they are written.

| class | kernels | rows | modules | whole | parts | why not kernels | why not parts |
|---|---|---|---|---|---|---|---|
"""


def row(name: str) -> str:
    """A class's row, as measured."""
    way = METHODS["token"]
    try:
        model = accelerate_model(model_of(name), way.method, **way.settings)
        ((_, hook),) = model.diffcache.hooks.values()
        with warnings.catch_warnings(action="ignore", category=NothingSkippedWarning):
            run(name, steps=1)
        return _row(name, hook.site)
    except UnsupportedModelError as error:
        return f"| {name} |  |  |  |  |  | refused: {_short(str(error))} |  |"
    finally:
        restore(model_of(name))


def _row(name: str, site: TokenSite) -> str:
    counts = Counter(way for way, _ in site.ways.values())
    cells = [str(n or "") for n in (*(counts[way] for way in WAYS), len(site.whole))]
    reasons = sorted({_short(why) for _, why in site.ways.values() if why})
    unformed = [why for why in site.unformed.values() if why]
    cells.append(f"{len(site.unformed) - len(unformed)} of {len(site.unformed)}" if site.unformed else "")
    cells += ["; ".join(reasons), "; ".join(sorted({_short(why) for why in unformed}))]
    return f"| {name} | {' | '.join(cells)} |"


def _short(reason: str) -> str:
    """Without what an operator said about the shapes of a tiny model."""
    reason = reason.rpartition("cannot be taken apart: ")[2]
    start, operator, _ = reason.partition(" alone: ")
    return start + " alone" if operator else start


def page(rows: Mapping[str, str]) -> str:
    """The page with these rows."""
    cells = [line.split(" | ") for line in rows.values()]
    fused, packed, apart = (sum(bool(line[i].strip()) for line in cells) for i in (1, 2, 3))
    formed = sum(_all_of(line[5]) for line in cells)
    head = _HEAD.format(version=diffusers.__version__, fused=fused, packed=packed, apart=apart, formed=formed)
    return head + "\n".join([*rows.values(), ""])


def _all_of(cell: str) -> bool:
    """Whether a cell says that all were."""
    some, of, all_of_them = cell.partition(" of ")
    return bool(of) and some.strip() == all_of_them.strip()


if __name__ == "__main__":
    PATH.write_text(page({name: row(name) for name in sorted(DENOISERS)}))
    print(PATH)
