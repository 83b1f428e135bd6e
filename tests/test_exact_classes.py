"""Exact savings on every transformer denoiser; ``python -m tests.test_exact_classes`` writes ``docs/exact.md``."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import diffusers
import pytest

from diffcache import accelerate_model, restore

from .denoisers import DENOISERS
from .denoisers.running import STEPS, bare, equal, model_of, run
from .states import attributes, forward_hooks

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without")

PATH = Path(__file__).parents[1] / "docs" / "exact.md"
classes = pytest.mark.parametrize("name", DENOISERS)

_HEAD = """# Exact savings

What a denoiser computes from prompt, positions and shapes alone is computed once a trajectory: text projections, keys
and values of cross-attention, refiners that do not see the timestep, rotary tables. What one call computes more than
once from the same values is computed once a call: a DiT works out the sinusoids of its timestep in every block. The
values are the bare model's, bit for bit. Every method has both, on by default; `exact=False` switches them off, and
`accelerate_pipeline(pipe, "exact")` has nothing else. Only `none` is without unless asked: it is the control whose cost
is the bare model's, and with them it would be `exact`. `stats()` counts them apart, as `exact_calls`, `exact_flops` and
`exact_bytes` of each branch.

To find what can be kept for a trajectory a call has to be watched, which takes some 50 ms more than a plain one, once
for each form of call. So a denoiser of less than 50 million parameters is watched from its second trajectory on (one
whose calls take 10 ms does not win that back in a generation), and one of less than a million not unless asked
(`exact=True`, which watches at once).

**They are small.** In a real text-to-image or text-to-video model the picture's tokens are most of the work, and they
change at every step: expect a few per cent of a computed step at most, and nothing of a predicted one.

## How they are found, and why they hold

Nothing is looked up by class. One computed step is watched operation by operation: a value is *still* if it was made
from weights, buffers and arguments that stay the same for a trajectory, and from nothing else. The outermost module
calls whose results are still are answered from then on, with the very tensors that they returned. What cannot be seen
counts as moving: uninitialised memory, tensors from nowhere, random numbers, what flex attention returns, and
everything after the host has read a moving value. The next call computes all of them once more, with another sample and
timestep, and what does not come out bit for bit the same is never answered. Neither costs a read of the host.

An answer is given only while what it depends on is what it was: arguments by identity and version, numbers and flags by
value, shapes, torch's modes, weights and adapters, buffers, the model's parts. An answer that somebody has written to
is dropped and computed again. Weights and parts are looked at once a step, for all branches. A module runs as ever in
training, with gradients, in a model that is compiled or has compiled parts, and where it draws random numbers, writes
to what it was given, changes an attribute, takes an object that is neither tensor nor plain value, or runs more than
once in a pass. Whatever passes through other people's hooks counts as moving; hooks are looked for when a trajectory
begins.

Held are calls with a matrix product, convolution or attention and at least {least} FLOPs for each element held, and
modules without weights that take at least {operations} operations (rotary tables). A normalisation is computed again:
it costs less than the memory that would hold it. Memory of one branch: the sum over the held results of
`numel * element_size` bytes.

## What a call repeats

Modules without weights and parts, of one class and with equal attributes, are twins (torch's own are left out: they are
one operation). In the first call one run of theirs is watched: its result has to be made from its argument, one tensor,
and from nothing else, by at least {operations} operations. The others run in that call as ever and must return the same
bits; from the next call on they get a copy of the first one's result, while the tensor is the same one and nobody has
written to it. Here, too, no value is read by the host. The result is held until the call ends, so it counts as no
memory. Twins that never get the same tensor lose their hooks again. Everything runs in inference mode, where torch does
not count who writes; under autocast; with gradients; in a model that has compiled parts; while somebody watches
operations; and beside other people's hooks.

diffusers' `DiTTransformer2DModel` is the case that counts: its sinusoids are ten operations in each of its blocks and
once more for its head, for one row of numbers a sample. They are some 4 % of a call of tiny-dit on two cores; on a GPU
they are ten kernels a block that have next to nothing to do. HunyuanVideo, HunyuanImage, LTX-2 and Kandinsky 6 repeat
them one to three times.

## What asking costs

Where all answers together would save less than 0.1 % of a call's FLOPs, nothing is held and nothing asked; a call then
costs one attribute test more. Otherwise asking takes some 10 µs a call and 2 to 3 µs an answer, and an answer takes the
place of a module call that takes longer than that whatever is in it. So 0.1 % is what pays for the asking in a call of
10 ms; the shipped models take more on one core. Of tiny-wan's call 1 % is answered for some 40 µs; tiny-world could
answer 0.0005 %, which would cost more than it saves, and tiny-dit nothing (what it repeats is found without a watched
call).

The watched call is slow: on the shipped models it takes as long as two or three plain ones. That is paid once for each
set of shapes while a method is on a model: not again for another branch, prompt or trajectory of the same form. A model
that looks at the values of its masks (`.tolist()` of prompt lengths) and has something to answer is watched once in
every trajectory and branch.

`python samples/measure_exact.py` measures all this.

## What was saved

Written by `python -m tests.test_exact_classes` and checked by the same file: a tiny random model of each class, fp32,
one branch, {steps} steps. *Calls* are module calls answered at each step, *FLOPs* their share of one call. Tiny models
have about as many words as picture tokens, so **these shares are far above those of real ones**. They are counted, not
timed, and what a call repeats is not among them. `none`: text and picture are one sequence from the start, the prompt
is a class label, or there is none.

| class | calls | FLOPs | held, bytes | answered |
|---|---|---|---|---|
"""


@cache
def outcome(name):
    """Whether the outputs are the bare model's, what the last step answered, and the row of the table."""
    model = accelerate_model(model_of(name), "exact")
    try:
        same = [
            equal(run(name, seed=seed, size=size), bare(name, seed, size)) for seed, size in ((0, 1), (3, 1), (0, 2))
        ]
        same.append(equal(run(name), bare(name)))
        (segment,) = model.diffcache.stats().segments
        ((_, hook),) = model.diffcache.hooks.values()
        return all(same), segment, sorted(hook.exact.answered), hook.exact.share
    finally:
        restore(model)


@classes
def test_bit_identical_over_prompts_and_shapes(name):
    assert outcome(name)[0]


@classes
def test_the_table_says_what_is_saved(name):
    assert row(name) in PATH.read_text().splitlines()


@classes
def test_nothing_is_left(name):
    before = attributes(model_of(name))
    accelerate_model(model_of(name), "exact")
    run(name)
    restore(model_of(name))
    assert attributes(model_of(name)) == before
    assert forward_hooks(model_of(name)) == 0


def row(name):
    _, segment, answered, share = outcome(name)
    if not answered:
        return f"| {name} | none | | | |"
    return f"| {name} | {len(answered)} | {100 * share:.1f}% | {segment.exact_bytes} | {', '.join(merged(answered))} |"


def merged(names):
    """Dotted names with block numbers left out, each once."""
    short = [".".join("*" if part.isdigit() else part for part in name.split(".")) for name in names]
    return list(dict.fromkeys(f"`{name}`" for name in short))


def document():
    from diffcache.hooks.watch import LEAST_FLOPS, LEAST_OPERATIONS

    head = _HEAD.format(least=LEAST_FLOPS, operations=LEAST_OPERATIONS, steps=STEPS)
    tail = f"\ndiffusers {diffusers.__version__}.\n"
    return head + "\n".join(map(row, DENOISERS)) + "\n" + tail


if __name__ == "__main__":
    PATH.write_text(document())
    print(PATH)
