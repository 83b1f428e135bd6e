"""Writes ``docs/compile.md``, how many graphs each class has: ``python -m tests.denoisers.compiling WAY [class ...]``.

``WAY`` is ``whole`` or ``blocks``. Without a class all are counted anew (some ten minutes of one core), with ``rest``
those that are not on the page.
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
WAYS = ("whole", "blocks")
SITES = ("body", "block", "module")
#: way of compiling -> sites whose hooks stand around what is compiled: what they add to the bare class's graphs is
#: counted; for the other sites the class is compiled anew
AROUND = {"whole": (), "blocks": ("body", "block")}

_HEAD = """# Graphs of each denoiser of diffusers {version} under `torch.compile`

Written by `python -m tests.denoisers.compiling whole` (and `blocks`) from what a tiny random model of each class
shows; do not edit.

Counted is how often dynamo hands a graph to the backend in two generations of {steps} steps with two prompts, some of
the steps predicted: for every recompilation and for every part between two breaks it would do so again. The column
*bare* is the class as diffusers has it, the next ones are the same with a method (`interval`) at a site. Compiled
results are bit for bit those without compilation, or *wrong*; *late*: the compiled class computes other steps, which
cannot be compared, for the body is proved at a later one (counted in `stats()`).

*Breaks*: where tracing the bare class stops and starts again. *Added*: breaks for reasons that the bare class does not
have. *Why*: what breaks the bare class, and why it has more than one graph: kinds of blocks, and guards that failed.
"""
_TABLE = """
## {title}

{summary}

| class | bare | body | block | module | breaks | added | why |
|---|---|---|---|---|---|---|---|
"""
_TITLES = {"whole": "The whole denoiser compiled", "blocks": "Its blocks compiled, one by one"}


WRONG, LATE = "wrong", "late"
_ADDRESS = re.compile(r"0x[0-9a-f]+|\b\d{9,}\b")


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
        said: site -> ``wrong`` where compiled results are not those without compilation, or nothing was skipped;
            ``late`` where other steps were computed.
    """

    bare: int
    sites: Mapping[str, int]
    breaks: int
    added: tuple[str, ...]
    reasons: tuple[str, ...]
    said: Mapping[str, str]

    def cells(self) -> list[str]:
        found = {"bare": self.bare, **{site: self.sites[site] for site in SITES}}
        graphs = [f"{number} {self.said.get(site, '')}".strip() for site, number in found.items()]
        return [*graphs, str(self.breaks or ""), str(len(self.added) or "")]


def count(name: str, way: str) -> Count:
    """Count the graphs of a class in one way of compiling: ``whole`` or ``blocks``."""
    graphs, model = _compiled(name, way)
    said = {} if equal(_run(name, model), _run(name, DENOISERS[name].tiny())) else {"bare": WRONG}
    bare, breaks, kinds = len(graphs), sum(counters["graph_break"].values()), set(counters["graph_break"])
    reasons = (*_kinds(model, way), *sorted({*map(_breaking, kinds), *_recompiling()}))
    sites, added = {}, set()
    for site in AROUND[way]:
        before = len(graphs)
        said[site] = _word(name, model, site)
        restore(model)
        sites[site] = bare + len(graphs) - before
        added |= set(counters["graph_break"]) - kinds
    for site in (site for site in SITES if site not in AROUND[way]):
        graphs, model = _compiled(name, way)
        said[site] = _word(name, model, site)
        sites[site] = len(graphs)
        added |= set(counters["graph_break"]) - kinds
    torch.compiler.reset()
    return Count(bare, sites, breaks, tuple(sorted(added)), reasons, said)


def _compiled(name: str, way: str) -> tuple[Graphs, nn.Module]:
    torch.compiler.reset()
    counters.clear()
    guard_failures.clear()
    graphs, model = Graphs(), DENOISERS[name].tiny()
    blocks = (block for blocks in find_block_lists(model).values() for block in blocks)
    for module in [model] if way == "whole" else blocks:
        module.compile(backend=graphs)
    return graphs, model


def _word(name: str, model: nn.Module, site: str) -> str:
    """What is to be said where the compiled model does not do what the model as it is written does."""
    plain = _method(DENOISERS[name].tiny(), site)
    found, wanted = _run(name, _method(model, site)), _run(name, plain)
    done, meant = ([s.decisions for s in m.diffcache.stats().segments] for m in (model, plain))
    if "c" not in done[-1]:
        return WRONG
    if done != meant:
        return LATE
    return "" if equal(found, wanted) else WRONG


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


def _kinds(model: nn.Module, way: str) -> list[str]:
    """Blocks of each class have a graph of their own."""
    kinds = {type(block) for blocks in find_block_lists(model).values() for block in blocks}
    return [f"{len(kinds)} classes of blocks"] if way == "blocks" and len(kinds) > 1 else []


def _breaking(reason: str) -> str:
    """The title of a break, and what it is about."""
    title, _, rest = reason.partition("\n")
    about = re.search(r"`([^`]+)`", rest)
    return f"breaks: {title}" + (f" (`{_ADDRESS.sub('…', about[1])}`)" if about else "")


def _recompiling() -> set[str]:
    reasons = (str(getattr(failure, "reason", failure)) for failures in guard_failures.values() for failure in failures)
    return {f"guard: `{_guard(reason)}`" for reason in reasons}


def _guard(reason: str) -> str:
    reason = re.sub(r"^\d+/\d+: ", "", reason.strip().split("\n")[0])
    return _ADDRESS.sub("…", reason.partition("  # ")[0]).replace("|", "/").replace("`", "'")


def row(name: str, way: str) -> str:
    """A class's row, as measured."""
    with warnings.catch_warnings(action="ignore"):
        found = count(name, way)
    added = (f"with a method, {_breaking(reason)}" for reason in found.added)
    return f"| {name} | {' | '.join([*found.cells(), '; '.join(dict.fromkeys([*found.reasons, *added]))])} |"


Rows = dict[str, dict[str, str]]


def rows(text: str) -> Rows:
    """The rows on a page, by way of compiling and class."""
    found: Rows = {}
    for way in WAYS:
        lines = text.partition(f"## {_TITLES[way]}\n")[2].partition("\n## ")[0].splitlines()
        named = ((line.split(" | ")[0].removeprefix("| "), line) for line in lines)
        found[way] = {name: line for name, line in named if name in DENOISERS}
    return found


def cells(line: str) -> list[str]:
    """What a row counts: as in :meth:`Count.cells`."""
    return [cell.strip() for cell in line.split(" | ")][1 : len(SITES) + 4]


def numbers(row: list[str]) -> list[int]:
    """Graphs bare and at each site; a word may stand behind."""
    return [int(cell.split()[0]) for cell in row[: 1 + len(SITES)]]


def page(rows: Rows) -> str:
    """The page with these rows."""
    parts = [_HEAD.format(version=diffusers.__version__, steps=STEPS)]
    for way in WAYS:
        parts.append(_TABLE.format(title=_TITLES[way], summary=_summary(list(rows[way].values()))))
        parts += [f"{rows[way][name]}\n" for name in sorted(rows[way])]
    return "".join(parts)


def _summary(lines: list[str]) -> str:
    found = [cells(line) for line in lines]
    once = sum(way[0] == "1" for way in found)
    graphs = [numbers(way) for way in found]
    twice = sum(max(sites) <= 2 * bare for bare, *sites in graphs)
    wrong, late = (sum(any(word in cell for cell in way) for way in found) for word in (WRONG, LATE))
    breaks, added = sum(bool(way[-2]) for way in found), sum(bool(way[-1]) for way in found)
    missing = len(DENOISERS) - len(lines)
    return (
        f"Of {len(lines)} classes {once} have one graph bare, and {breaks or 'none'} break when bare. With a method at "
        f"any site {twice} have at most two graphs for\none of the bare class, one that computes and one that reuses; "
        f"methods add a break to {added or 'none'}, {wrong or 'none'} is *wrong* at some site,\n"
        f"{late or 'none'} *late*." + (f"\n{missing} classes are not counted yet." if missing else "")
    )


def write(way: str, names: Iterable[str], measured: Callable[[str, str], str] = row) -> None:
    """Measure these classes anew; the page is written after each, so that what was measured is not lost."""
    gc.freeze()  # tracing makes many objects: what has been imported by now need not be looked through each time
    for name in names:
        line = measured(name, way)
        found = rows(PATH.read_text() if PATH.exists() else "")
        found[way][name] = line
        PATH.write_text(page(found))
        print(line, flush=True)


if __name__ == "__main__":
    way, *asked = sys.argv[1:]
    if asked == ["rest"]:
        asked = [name for name in sorted(DENOISERS) if name not in rows(PATH.read_text())[way]]
    write(way, asked or sorted(DENOISERS))
