"""From ``--methods`` to rows of a language model's report, and the control that is always there: fewer steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...llm import Facts
from ...llm.policies import refusal
from ..plan import CONTROL, CONTROL_SHARES, Spec, control_of, read_entries

DEFAULT = ("freecache", "fast-dllm:prefix", "fast-dllm:dual", "elastic", "window", "flashblock:dual", "dkv")
DEFAULT += ("dllm-cache", "sparse-dllm", "d2cache")
#: of block-causal models
DEFAULT_CAUSAL = ("freecache", "flashblock:dirty=1", "flashblock")
"""Methods of a report that names none."""


def make_text_plan(
    methods: str | Sequence[Any] | None,
    facts: Facts,
    gen_length: int,
    block_length: int,
    steps: int | None,
    sweep: bool = False,
) -> list[Spec]:
    """The rows, in order, with the control at the end; vanilla is no row, it is what all are compared with.

    Args:
        methods: as for :func:`diffcache.report.plan.read_entries`; None takes a default set for the model's regime.
        gen_length, block_length: of the decoding, in tokens; ``steps`` in all, or None where the decoder decides.

    Raises:
        ConfigError: an unknown method or field, or a value out of range.
    """
    chosen = (DEFAULT_CAUSAL if facts.causal else DEFAULT) if methods is None else methods
    specs = [spec for spec in read_entries(chosen, gen_length, sweep, "language") if spec.method != "vanilla"]
    controls = [control_of({"steps": count}, gen_length) for count in _counts(facts, gen_length, block_length, steps)]
    return list({spec.name: spec for spec in [*specs, *controls]}.values())


def _counts(facts: Facts, gen_length: int, block_length: int, steps: int | None) -> list[int]:
    """Numbers of steps. Where the decoder decides, two steps a block, one a block, and one for two and four blocks."""
    blocks = max(gen_length // block_length, 1)
    if steps is not None:
        wanted = [count for share in CONTROL_SHARES if (count := max(round(share * steps), 1)) < steps]
    else:
        wanted = [2 * blocks, blocks] + [blocks // part for part in (2, 4) if blocks % part == 0]
    return [count for count in dict.fromkeys(wanted) if shape_of(count, facts, block_length, blocks) is not None]


def shape_of(count: int, facts: Facts, block_length: int, blocks: int) -> dict[str, int] | None:
    """Steps and block length with which ``count`` steps decode the canvas; None where that cannot be.

    A block takes one step at least: for fewer steps than blocks, blocks are joined, if the model's own are not fixed.
    """
    if count >= blocks:
        return {"steps": count, "block_length": block_length}
    if facts.causal or blocks % count:
        return None
    return {"steps": count, "block_length": block_length * (blocks // count)}


def refused(spec: Spec, facts: Facts, block_length: int, blocks: int) -> str | None:
    """Why a row does not run on the model, or None."""
    if spec.kind != CONTROL:
        return refusal(spec.config, facts)
    if shape_of(spec.steps, facts, block_length, blocks) is not None:
        return None
    return f"{spec.steps} steps do not decode {blocks} blocks of {block_length} tokens: each takes a step at least"
