"""Running some of the samples of a denoiser call by themselves.

Which arguments carry the batch is proposed by inspection and then proved, once a model and form of call: the rows that
are computed by themselves must be those of the whole batch. What cannot be proved is decided together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .again import compare, repeatable
from .anatomy import Anatomy
from .rows import Cut, Place, Rows, batch_axis, find_places, take

Run = Callable[[], Any]
#: what a call returned, and tensors that it showed on the way
Shown = tuple[Any, list[Tensor]]
Show = Callable[[Run], Shown]

#: proposals that are tried before a form is given up
_MOST_TRIES = 4


class Batches:
    """What is known of the batches of one denoiser.

    Args:
        anatomy: of the denoiser.
        outputs: whether outputs are held: of a list of noisy samples, one tensor a sample.
    """

    def __init__(self, anatomy: Anatomy, outputs: bool) -> None:
        self.anatomy, self.outputs = anatomy, outputs
        #: form of a call -> how its batch is cut, or why it cannot be
        self.known: dict[Any, Cut | str] = {}
        #: shapes of a call's arguments -> where they may carry how many samples
        self.seen: dict[Any, tuple[int, list[Place]]] = {}

    def of(self, run: Run) -> tuple[Batch, Run]:
        """The batch of a call that is about to run, and the call as it can be run once more afterwards."""
        like = getattr(run, "likeness", None)
        if like is None:
            return Batch(self, run), repeatable(run)
        if like.batch is None or like.batch._known is not self:
            like.batch = Batch(self, run)
        return like.batch, run  # it holds no arguments within others


class Batch:
    """The samples of one call, and of those like it; it holds none of their tensors.

    Attributes:
        size: how many; 1 where they cannot be told apart.
        apart: whether each tensor that is held is one sample's.
        behind: whether the samples are not on the first axis of what is held.
    """

    def __init__(self, known: Batches, run: Run) -> None:
        self._known = known
        self.behind = False
        call = _arguments(run)
        names = known.anatomy.parameters
        values = {names[key] if isinstance(key, int) and key < len(names) else key: v for key, v in call.items()}
        sample = values.get(known.anatomy.sample)
        self._sample_key = _key_of(known.anatomy.sample, values, call)
        self._listed = isinstance(sample, (list, tuple))
        self.apart = known.outputs and self._listed
        shapes = _shapes(call)
        found = known.seen.get(shapes)
        self.size, self._places = found if found is not None else self._inspect(sample, call, values)
        if shapes is not None:
            known.seen[shapes] = self.size, self._places

    def _inspect(self, sample: Any, call: Mapping[Any, Any], values: Mapping[Any, Any]) -> tuple[int, list[Place]]:
        """How many samples there are, and where."""
        size = len(sample) if self._listed or _has_rows(sample) else 1
        if size <= 1:
            return size, []
        anatomy, places = self._known.anatomy, []
        keys = dict(zip(values, call, strict=True))
        for name, value in values.items():
            sure = name in (anatomy.sample, anatomy.timestep)
            likely = sure or name in anatomy.conditioning
            places += find_places((keys[name],), value, size, likely, sure)
        carried = {place.path[0] for place in places if place.choices[0] is not None}
        if len(carried - {keys[anatomy.sample]}) == 0:
            return 1, []  # an axis that nothing else has is no batch
        return size, places

    # -- whether it can be parted ----------------------------------------------------------------------------------

    @property
    def _form(self) -> Any:
        return tuple((place.path, place.choices[0]) for place in self._places)

    @property
    def parted(self) -> bool:
        """Whether it is proved that samples can run by themselves."""
        return isinstance(self._known.known.get(self._form), dict)

    @property
    def hindrance(self) -> str | None:
        """Why they cannot, if that is known."""
        found = self._known.known.get(self._form)
        return found if isinstance(found, str) else None

    def prove(self, run: Run, rows: Rows, show: Show) -> tuple[Shown, Shown | None]:
        """Run the whole batch, and some samples by themselves, which must show the same. One host read a try.

        Args:
            run: the call.
            rows: the samples.
            show: runs a call as the site does.

        Returns:
            What the whole batch showed; and what the samples showed, or None if it is not proved.
        """
        again = repeatable(run)
        whole = show(_bare(again, again.args, again.keywords))
        for cut in self._proposals():
            verdict, part = self._try(run, cut, rows, show, whole)
            if verdict:
                self._known.known[self._form] = cut
                return whole, part
            if verdict is None:
                return whole, None  # nothing can be told from what is not finite
        model = self._known.anatomy.model_class
        self._known.known[self._form] = f"{model} does not return the same for samples that run by themselves"
        return whole, None

    def _try(self, run: Run, cut: Cut, rows: Rows, show: Show, whole: Shown) -> tuple[bool | None, Shown | None]:
        try:
            part = show(_cut_call(run, cut, rows))
            pairs = [*rows.pairs(whole[0], part[0]), *zip(map(rows.cut, whole[1]), part[1], strict=True)]
        except Exception:
            return False, None  # an argument was cut that should not be, or the other way round
        if not pairs:
            return False, None
        finite, same = torch.stack(compare(*map(list, zip(*pairs, strict=True)))).tolist()
        return (same if finite else None), part

    def _proposals(self) -> Iterator[Cut]:
        first = {place.path: place.choices[0] for place in self._places}
        yield first
        others = [(p.path, choice) for p in self._places for choice in p.choices[1:]]
        yield from ({**first, path: choice} for path, choice in others[: _MOST_TRIES - 1])

    # -- parting it ------------------------------------------------------------------------------------------------

    def rows(self, chosen: Sequence[int]) -> Rows:
        """Some of the samples."""
        return Rows(self.size, chosen, self.apart)

    def part(self, run: Run, rows: Rows) -> Run:
        """A call for some of its samples."""
        return _cut_call(run, self._known.known[self._form], rows)

    # -- which samples belong together -----------------------------------------------------------------------------

    @property
    def folds(self) -> list[int]:
        """Numbers of equal parts that the batch may consist of, the most first."""
        return [n for n in range(self.size, 1, -1) if self.size % n == 0]

    def repeats(self, run: Run) -> list[Tensor]:
        """For each of :attr:`folds`, whether a call's noisy sample is that many times the same; nothing is read."""
        sample = _arguments(run)[self._sample_key]
        return [self._repeated(sample, n) for n in self.folds]

    def _repeated(self, sample: Any, folds: int) -> Tensor:
        count = self.size // folds
        if not self._listed:
            noise = self._noise(sample).unflatten(0, (folds, count))
            return _equal(noise, noise[:1])
        pairs = [(sample[i], sample[i % count]) for i in range(count, self.size)]
        if any(not isinstance(a, Tensor) or not isinstance(b, Tensor) or a.shape != b.shape for a, b in pairs):
            return torch.tensor(False)
        return torch.stack([_equal(a, b) for a, b in pairs]).all()

    def _noise(self, sample: Tensor) -> Tensor:
        """Without the conditions that pipelines put behind the noisy channels: they may differ between halves."""
        anatomy = self._known.anatomy
        axis = anatomy.layout(sample).channel_dim
        if not anatomy.channels or axis == 0:
            return sample
        return sample.narrow(axis, 0, min(sample.shape[axis], anatomy.channels))

    def leading(self, value: Tensor) -> Tensor:
        """What is held, with the samples on the first axis."""
        self.behind = batch_axis(value, self.size) > 0
        return value.movedim(1, 0) if self.behind else value

    def spread(self, parts: Sequence[Sequence[Any]]) -> list[list[Any]] | None:
        """What belongs to each sample, of lists that go through all samples in order; None if that cannot be told.

        Args:
            parts: one a sample where what is held is :attr:`apart`, else any number, each as long as the batch or a
                multiple of it.
        """
        if self.apart:
            return [list(part) for part in parts] if len(parts) == self.size else None
        if any(len(part) % self.size or not part for part in parts):
            return None
        rows: list[list[Any]] = [[] for _ in range(self.size)]
        for part in parts:
            width = len(part) // self.size
            for i, row in enumerate(rows):
                row += part[i * width : (i + 1) * width]
        return rows


def _arguments(run: Run) -> dict[Any, Any]:
    """Of a call, by position or name."""
    return {**dict(enumerate(run.args)), **run.keywords} if isinstance(run, partial) else {}


def _cut_call(run: Run, cut: Cut, rows: Rows) -> Run:
    """A call for some samples, cut from that of the whole batch."""
    args = [take((i,), value, cut, rows) for i, value in enumerate(run.args)]
    keywords = {name: take((name,), value, cut, rows) for name, value in run.keywords.items()}
    return _bare(run, args, keywords)


def _bare(run: Run, args: Sequence[Any], keywords: Mapping[str, Any]) -> Run:
    """Without exact savings: these hold the answers of the whole batch."""
    return partial(getattr(run.func, "bare", run.func), *args, **keywords)


def _key_of(name: str, values: Mapping[Any, Any], call: Mapping[Any, Any]) -> Any:
    """How an argument is given: its position or its name."""
    return dict(zip(values, call, strict=True)).get(name)


def _shapes(call: Mapping[Any, Any]) -> Any:
    """All that the places of samples depend on; None where an argument holds tensors within."""
    if any(isinstance(value, (list, tuple, Mapping)) for value in call.values()):
        return None
    return tuple((key, getattr(value, "shape", None)) for key, value in call.items())


def _has_rows(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() > 1


def _equal(a: Tensor, b: Tensor) -> Tensor:
    return ((a == b) | (a.isnan() & b.isnan())).all()


def folded(sample: Any) -> bool:
    """Whether a call's batch is the same noise twice: both conditionings of guidance at once. One host read."""
    if not _has_rows(sample) or len(sample) % 2:
        return False
    first, second = sample.chunk(2)
    return torch.equal(first, second)
