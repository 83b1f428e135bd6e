"""Writes ``docs/compile.md``, how many graphs each class has: ``python -m tests.denoisers.compiling [class ...]``.

Without a class it counts all anew (a quarter of an hour), with ``rest`` those that are not on the page.
"""

from __future__ import annotations

import gc
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import diffusers
import torch
from torch import nn
from torch._dynamo.utils import counters, guard_failures

from diffcache import accelerate_model, denoising, restore
from diffcache.hooks.anatomy import find_block_lists
from diffcache.hooks.outputs import flatten

from . import DENOISERS
from .running import Outputs, equal

PATH = Path(__file__).parents[2] / "docs" / "compile.md"
STEPS = 6  # FFccFF
PROMPTS = (0, 1)
SITES = ("body", "block", "module")
#: way of compiling -> sites whose hooks stand around what is compiled: what they add to the bare class's graphs is
#: counted; for the other sites the class is compiled anew
AROUND = {"whole": (), "blocks": ("body", "block")}

_HEAD = """# Graphs of each denoiser of diffusers {version} under `torch.compile`

Written by `python -m tests.denoisers.compiling` from what a tiny random model of each class shows; do not edit.

Counted is how often dynamo hands a graph to the backend in two generations of {steps} steps with two prompts, some of
the steps predicted: for every recompilation and for every part between two breaks it would do so again. The *whole*
denoiser is compiled, or its *blocks* are, one by one. The first column of each is the bare class, the next ones the
same with a method (`interval`) at a site. Compiled results are bit for bit those without compilation, or *wrong*.

{summary}

*Breaks*: where tracing the bare class stops and starts again. *Added*: breaks for reasons that the bare class does not
have. *Why*: what breaks the bare class, and the guards by which it, or one of its blocks, has more than one graph.

| class | whole | body | block | module | breaks | added | blocks | body | block | module | breaks | added | why |
|---|---|---|---|---|---|---|---|---|---|---|---|---|---|
"""


class Graphs(list):
    """A backend that keeps the graphs it is given, and runs them eagerly."""

    def __call__(self, graph, inputs):
        self.append(graph)
        return graph.forward


@dataclass(frozen=True)
class Count:
    """What was counted in one way of compiling.

    Attributes:
        bare: graphs of the class alone.
        sites: graphs with a method at each site.
        breaks: of the class alone.
        added: reasons to break that came with a method.
        reasons: why it breaks and recompiles alone.
        wrong: sites whose compiled results are not those without compilation, or which skipped nothing.
    """

    bare: int
    sites: Mapping[str, int]
    breaks: int
    added: tuple[str, ...]
    reasons: tuple[str, ...]
    wrong: tuple[str, ...]

    def cells(self) -> list[str]:
        found = {"bare": self.bare, **{site: self.sites[site] for site in SITES}}
        graphs = [f"{number}{' wrong' if site in self.wrong else ''}" for site, number in found.items()]
        return [*graphs, str(self.breaks or ""), str(len(self.added) or "")]


def count(name: str, way: str) -> Count:
    """Count the graphs of a class in one way of compiling: ``whole`` or ``blocks``."""
    graphs, model = _compiled(name, way)
    right = [] if equal(_run(name, model), _run(name, DENOISERS[name].tiny())) else ["bare"]
    bare, breaks, kinds = len(graphs), sum(counters["graph_break"].values()), set(counters["graph_break"])
    reasons = tuple(sorted({*map(_breaking, kinds), *_recompiling()}))
    sites, added, wrong = {}, set(), right
    for site in AROUND[way]:
        before = len(graphs)
        wrong += _wrong(name, model, site)
        restore(model)
        sites[site] = bare + len(graphs) - before
        added |= set(counters["graph_break"]) - kinds
    for site in (site for site in SITES if site not in AROUND[way]):
        graphs, model = _compiled(name, way)
        wrong += _wrong(name, model, site)
        sites[site] = len(graphs)
        added |= set(counters["graph_break"]) - kinds
    torch.compiler.reset()
    return Count(bare, sites, breaks, tuple(sorted(added)), reasons, tuple(wrong))


def _compiled(name: str, way: str) -> tuple[Graphs, nn.Module]:
    torch.compiler.reset()
    counters.clear()
    guard_failures.clear()
    graphs, model = Graphs(), DENOISERS[name].tiny()
    blocks = (block for blocks in find_block_lists(model).values() for block in blocks)
    for module in [model] if way == "whole" else blocks:
        module.compile(backend=graphs)
    return graphs, model


def _wrong(name: str, model: nn.Module, site: str) -> list[str]:
    """The site, if the compiled model does not do there what the model as it is written does."""
    plain = _method(DENOISERS[name].tiny(), site)
    found, wanted = _run(name, _method(model, site)), _run(name, plain)
    skips = "c" in model.diffcache.stats().segments[-1].decisions
    return [] if skips and equal(found, wanted) else [site]


def _method(model: nn.Module, site: str) -> nn.Module:
    return accelerate_model(model, "interval", interval=3, warmup=2, site=site)


def _run(name: str, model: nn.Module) -> Outputs:
    """A generation for each prompt."""
    outputs = []
    for seed in PROMPTS:
        arguments = DENOISERS[name].trajectory(seed)
        with torch.no_grad(), denoising(model, STEPS):
            for step in range(STEPS):
                outputs.append([part.clone() for part in flatten(model(**arguments(1 - step / STEPS)))[0]])
    return outputs


def _breaking(reason: str) -> str:
    """The title of a break, and what it is about."""
    title, _, rest = reason.partition("\n")
    about = re.search(r"`([^`]+)`", rest)
    return f"breaks: {title}" + (f" (`{about[1]}`)" if about else "")


def _recompiling() -> set[str]:
    reasons = (str(getattr(failure, "reason", failure)) for failures in guard_failures.values() for failure in failures)
    return {f"guard: `{_guard(reason)}`" for reason in reasons}


def _guard(reason: str) -> str:
    reason = re.sub(r"^\d+/\d+: ", "", reason.strip().split("\n")[0])
    return re.sub(r"0x[0-9a-f]+|\b\d{9,}\b", "…", reason.partition("  # ")[0]).replace("|", "/").replace("`", "'")


def row(name: str) -> str:
    """A class's row, as measured."""
    with warnings.catch_warnings(action="ignore"):
        whole, blocks = count(name, "whole"), count(name, "blocks")
    reasons = dict.fromkeys((*whole.reasons, *blocks.reasons))
    added = dict.fromkeys(f"with a method, {_breaking(reason)}" for each in (whole, blocks) for reason in each.added)
    return f"| {name} | {' | '.join([*whole.cells(), *blocks.cells(), '; '.join([*reasons, *added])])} |"


def rows(text: str) -> dict[str, str]:
    """The rows on a page, by class."""
    lines = (line for line in text.splitlines() if line.startswith("| "))
    return {name: line for line in lines if (name := line.split(" | ")[0].removeprefix("| ")) in DENOISERS}


def cells(line: str) -> tuple[list[str], list[str]]:
    """What a row counts for the whole denoiser, and for its blocks: as in :meth:`Count.cells`."""
    found = [cell.strip() for cell in line.split(" | ")]
    width = len(SITES) + 3
    return found[1 : 1 + width], found[1 + width : 1 + 2 * width]


def page(rows: Mapping[str, str]) -> str:
    """The page with these rows."""
    head = _HEAD.format(version=diffusers.__version__, steps=STEPS, summary=_summary(list(rows.values())))
    return head + "\n".join([*(rows[name] for name in sorted(rows)), ""])


def _summary(lines: list[str]) -> str:
    whole, blocks = zip(*map(cells, lines), strict=True)
    two = sum(way[: 1 + len(SITES)] == ["1", *["2"] * len(SITES)] for way in whole)
    unbroken = sum(not way[-2] for way in blocks)
    more = sum(way[0] != "1" for way in whole)
    added = sum(bool(way[-1]) for way in (*whole, *blocks))
    missing = len(DENOISERS) - len(lines)
    return (
        f"Of {len(lines)} classes {two} are one graph bare, and two with a method at every site: one that computes and "
        f"one that reuses.\n{more} have more than one bare; a method at most doubles them. Blocks of {unbroken} "
        f"classes are traced without a break.\nMethods add a break to {added or 'no class'}."
        + (f" {missing} classes are not counted yet: `python -m tests.denoisers.compiling rest`." if missing else "")
    )


def write(names: Iterable[str], measured: Callable[[str], str] = row) -> None:
    """Measure these classes anew; the page is written after each, so that what was measured is not lost."""
    found = rows(PATH.read_text()) if PATH.exists() else {}
    gc.freeze()  # tracing makes many objects: what has been imported by now need not be looked through each time
    for name in names:
        found[name] = measured(name)
        PATH.write_text(page(found))
        print(found[name], flush=True)


if __name__ == "__main__":
    asked = sys.argv[1:] or sorted(DENOISERS)
    if asked == ["rest"]:
        asked = [name for name in sorted(DENOISERS) if name not in rows(PATH.read_text())]
    write(asked)
