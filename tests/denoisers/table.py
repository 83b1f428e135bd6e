"""Writes ``docs/support.md``: ``python -m tests.denoisers.table``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import diffusers

from . import DENOISERS
from .conformance import Outcome, outcome
from .exported import denoiser_classes, exclusion, timed_classes
from .running import METHODS

PATH = Path(__file__).parents[2] / "docs" / "support.md"

_HEAD = """# Transformer denoisers of diffusers {version}

Written by `python -m tests.denoisers.table` from what the tests measure on a tiny random model of each class, in fp32
on the CPU; do not edit. No class is listed by hand: sites are found by inspection.

What is tried:

| column | what is cached | tried with | works on |
|---|---|---|---|
{ways}

**yes** means both of these, measured:

* *exact*: with the method set to never skip, every output equals the bare model's, bit for bit;
* *works*: the method does skip, and with input and conditioning held constant its predicted outputs equal the computed
  ones (within 1e-5; those of `Kandinsky5Transformer3DModel`, which rounds queries and keys to bf16 whatever its dtype,
  within 1e-3).

The tests also check, for each class and column: nothing is left after `restore`; no state crosses trajectories or
shapes; at most one host read a computed step and none a predicted one (a method that listens reads its signal); NaN and
exceptions leave the next generation clean. What `first`, `modulated` and `rate` hear moves when the sample does, and
stands still with it. What is stored at `block` and `module` is what the part adds: with the blocks' weights at zero it
is zero (but for blocks that add positions or another stream). A refused site raises `UnsupportedModelError` with the
reason, before any value is predicted.

At a predicted step site `output` runs nothing of the denoiser. Site `body` runs its embeddings and its head, and block
lists that make the body's input (refiners). The body of a model is proved in its first computed step: it runs once more
with its blocks skipped and has to return what it returned, which costs that replay and one host read. Site `module`
runs norms, modulation and gates, and what the last column names.

`CosmosTransformer3DModel` is tested without its padding mask, which needs torchvision.

How partial steps run on each class: [packing.md](packing.md). Its graphs under `torch.compile`:
[compile.md](compile.md).

| class | {columns} | runs at a predicted step of `body` | of `module` |
|---|{rules}|---|---|
"""

_TAIL = """
## Left out

Classes that take a timestep and are no transformer denoisers:

| class | reason |
|---|---|
"""


#: what each column caches
_CACHED = {
    "output": "the denoiser's output",
    "body": "the residual over all blocks",
    "block": "what each block adds to its streams",
    "module": "results of attention and feed-forward, before the gate",
    "attention": "results of attention alone",
    "token": "results of attention and feed-forward, token by token",
    "first": "the residual behind the first block, whose change decides",
    "modulated": "the residual over all blocks; the first attention's input decides",
    "rate": "the output less the input; the output's expected change decides",
}


def document() -> str:
    """The page for the installed diffusers."""
    rows = {name: row(name) for name in denoiser_classes()}
    return page(rows, Counter({site: sum(works(line, site) for line in rows.values()) for site in METHODS}))


def page(rows: Mapping[str, str], working: Mapping[str, int]) -> str:
    """The page with these rows, given how many classes work at each site."""
    ways = "\n".join(
        f"| `{site}` | {_CACHED[site]} | `{way.method}` | {working[site]} of {len(rows)} |"
        for site, way in METHODS.items()
    )
    columns = " | ".join(f"`{site}`" for site in METHODS)
    head = _HEAD.format(
        version=diffusers.__version__, ways=ways, columns=columns, rules="|".join(["---"] * len(METHODS))
    )
    return head + "\n".join(rows.values()) + "\n" + _TAIL + "\n".join(_left_out()) + "\n"


def row(name: str) -> str:
    """A class's row, as measured."""
    if name not in DENOISERS:
        return f"| {name} |" + " not tested |" * (len(METHODS) + 2)
    cells = [_cell(outcome(name, site)) for site in METHODS]
    running = [", ".join(f"`{part}`" for part in outcome(name, site).running) for site in ("body", "module")]
    return f"| {name} | {' | '.join([*cells, *running])} |"


def works(line: str, site: str) -> bool:
    """What a row says of a site."""
    return line.split(" | ")[1 + list(METHODS).index(site)] == "yes"


def _cell(found: Outcome) -> str:
    if found.refusal is not None:
        return f"refuses: {found.refusal}"
    if found.exact and found.works:
        return "yes"
    return "exact" if found.exact else "works" if found.works else "fails"


def _left_out() -> list[str]:
    reasons = {name: exclusion(name) for name in timed_classes()}
    return [f"| {name} | {reason} |" for name, reason in reasons.items() if reason is not None]


if __name__ == "__main__":
    PATH.write_text(document())
    print(PATH)
