"""Writes ``docs/support.md``: ``python -m tests.denoisers.table``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import diffusers

from . import DENOISERS
from .conformance import Outcome, outcome
from .exported import denoiser_classes, exclusion, timed_classes
from .running import METHODS

PATH = Path(__file__).parents[2] / "docs" / "support.md"

_HEAD = """# Transformer denoisers of diffusers {version}

Written by `python -m tests.denoisers.table` from what the tests measure on a tiny random model of each class, in fp32
on the CPU; do not edit.

* **exact**: with a method that never skips, every output equals the bare model's, bit for bit.
* **works**: a method that skips does skip, and with input and conditioning held constant its predicted outputs equal
  the computed ones (within 1e-5). The tests also check, for each class and site: nothing is left after `restore`; no
  state crosses trajectories or shapes; at most one host read a computed step and none a predicted one; NaN and
  exceptions leave the next generation clean.
* **refuses**: an `UnsupportedModelError` with this reason, before any value is predicted.

{counts}

Site `output` runs nothing of the denoiser at a predicted step. Site `body` runs its embeddings and its head; block
lists that make the body's input (refiners) run, too, and are named in the last column. The body of a model is proved
in its first computed step: it runs once more with its blocks skipped and has to return what it returned, which costs
that replay and one host read.

`CosmosTransformer3DModel` is tested without its padding mask, which needs torchvision.

| class | output | body | runs at a predicted step of body |
|---|---|---|---|
"""

_TAIL = """
## Left out

Classes that take a timestep and are no transformer denoisers:

| class | reason |
|---|---|
"""


def document() -> str:
    """The page for the installed diffusers."""
    rows = [_row(name) for name in denoiser_classes()]
    head = _HEAD.format(version=diffusers.__version__, counts="\n".join(_counts()))
    return head + "\n".join(rows) + "\n" + _TAIL + "\n".join(_left_out()) + "\n"


def _counts() -> Iterator[str]:
    names = denoiser_classes()
    for site in METHODS:
        working = sum(name in DENOISERS and outcome(name, site).works for name in names)
        yield f"Site `{site}`: {working} of {len(names)} classes work.  "


def _row(name: str) -> str:
    if name not in DENOISERS:
        return f"| {name} | not tested | not tested | |"
    output, body = (outcome(name, site) for site in METHODS)
    lists = ", ".join(f"`{n}`" for n in body.running)
    return f"| {name} | {_cell(output)} | {_cell(body)} | {lists} |"


def _cell(found: Outcome) -> str:
    if found.refusal is not None:
        return f"refuses: {found.refusal}"
    parts = ["exact"] * found.exact + ["works"] * found.works
    return ", ".join(parts) or "fails"


def _left_out() -> list[str]:
    reasons = {name: exclusion(name) for name in timed_classes()}
    return [f"| {name} | {reason} |" for name, reason in reasons.items() if reason is not None]


if __name__ == "__main__":
    PATH.write_text(document())
    print(PATH)
