"""What people read: progress, tables, summaries. On a terminal with colours and a bar, elsewhere plain lines."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from types import TracebackType

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

EVERY = 5.0  # seconds between plain lines of one run
PIPE_WIDTH = 120  # of tables that go to a file or a pipe
LEAST_WIDTH = 8  # of a column that can be read


class _Output(Console):
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # the command ends with 0 then; rich's own answer is an exit code of 1


def console() -> Console:
    """Standard output; text is printed as it is, without markup."""
    made = _Output(highlight=False, markup=False, emoji=False)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = PIPE_WIDTH
    return made


def say(text: str) -> None:
    """Print lines, unwrapped."""
    console().print(text, soft_wrap=True)


def summarise(title: str, facts: Sequence[tuple[str, str]]) -> None:
    """A title and facts as (name, value), aligned; on a pipe every fact keeps to one line, so programs can read it."""
    out = console()
    out.print(title, style="bold", soft_wrap=True)
    if not out.is_terminal:
        room = max((len(name) for name, _ in facts), default=0)
        for name, value in facts:
            out.print(f"  {name:<{room}}  {value}", soft_wrap=True)
        return
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="cyan", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in facts:
        grid.add_row(f"  {name}", value)
    out.print(grid)


def tabulate(names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table; the first column is never wrapped. A terminal too narrow for it gets a paragraph for each row."""
    out = console()
    if out.width < max((len(row[0]) for row in rows), default=0) + LEAST_WIDTH * len(names):
        for row in rows:
            facts = [f"  {name}: {value}" for name, value in zip(names[1:], row[1:], strict=True) if value]
            out.print("\n".join([row[0], *facts]), soft_wrap=True)
        return
    table = Table(*names, box=SIMPLE_HEAD, pad_edge=False)
    table.columns[0].no_wrap = True
    for column in table.columns[1:]:
        column.overflow = "fold"
    for row in rows:
        table.add_row(*row)
    out.print(table)


class StepProgress:
    """Call it with (label, steps done, steps in all); 0 done begins a run. Use it as a context.

    Args:
        out: where to draw.
        unit: what is counted; empty where the label says it.
    """

    def __init__(self, out: Console, unit: str = "step") -> None:
        self.console, self.unit = out, unit and f"{unit} "
        self.bar: Progress | None = None
        self._label = ""
        self._began = self._told = 0.0

    def __enter__(self) -> StepProgress:
        if self.console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            columns += (TimeElapsedColumn(), TimeRemainingColumn())
            # Few refreshes: drawing must not show in the times that are measured meanwhile.
            self.bar = Progress(*columns, console=self.console, transient=True, refresh_per_second=4)
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def __call__(self, label: str, done: int, total: int) -> None:
        if self.bar is not None:
            self._draw(label, done, total)
        else:
            self._tell(label, done, total)

    def _draw(self, label: str, done: int, total: int) -> None:
        assert self.bar is not None
        if done == 0:
            for task in self.bar.task_ids:
                self.bar.remove_task(task)
            self.bar.add_task(label, total=total or None)
        elif self.bar.task_ids:
            self.bar.update(self.bar.task_ids[-1], completed=done, total=total)

    def _tell(self, label: str, done: int, total: int) -> None:
        now = time.monotonic()
        if done == 0:
            self._began = self._told = now
        elif done == total or now - self._told >= EVERY:
            self._told = now
            self.console.print(
                f"{label}: {self.unit}{done} of {total}, {now - self._began:.1f} s", markup=False, soft_wrap=True
            )
