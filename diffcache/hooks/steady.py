"""Matrix products that come out alike in two runs of one block: nothing that differs between the runs is in them.

A block that runs twice in a step (:mod:`.fused`) would compute its modulation twice: weights as large as those of an
attention, for one row. What is computed from other things than the tokens and what modules answered is noted in the
first run and given in the second.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode, _get_current_function_mode


@dataclass(frozen=True)
class Product:
    """A matrix product.

    Attributes:
        shape: of what was multiplied.
        result: the product, and its version then: one that was written to since is not given.
    """

    shape: torch.Size
    result: Tensor
    version: int


#: products by the identity of their weights, in order; None for one that may differ
Products = dict[int, deque[Product | None]]


class Noting(TorchFunctionMode):
    """Within: matrix products are noted.

    Args:
        moving: tensors that differ between the runs; what is computed from them may, too.
    """

    def __init__(self, moving: Iterable[Tensor]) -> None:
        super().__init__()
        self.products: Products = defaultdict(deque)
        self._moving: dict[int, Tensor] = {}  # held, so that no other tensor gets their numbers
        self.move(moving)

    def move(self, tensors: Iterable[Tensor]) -> None:
        """These differ between the runs."""
        self._moving |= {id(tensor): tensor for tensor in tensors}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        moves = any(id(t) in self._moving for t in _tensors((args, kwargs)))
        if moves:
            self.move(_tensors(result))
        if func is F.linear and len(args) > 1:
            steady = not (moves or result.is_inference())  # in inference mode torch does not tell who writes
            self.products[id(args[1])].append(Product(args[0].shape, result, result._version) if steady else None)
        return result


class Giving(TorchFunctionMode):
    """Within: products that were noted are not computed again.

    Args:
        products: see :class:`Noting`; used up.
    """

    def __init__(self, products: Products) -> None:
        super().__init__()
        self._products = products

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear and len(args) > 1 and self._products.get(id(args[1])):
            noted = self._products[id(args[1])].popleft()
            if noted is not None and noted.shape == args[0].shape and noted.version == noted.result._version:
                return noted.result
        return func(*args, **(kwargs or {}))

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Within: nobody looks at what is called, for it costs some microseconds a call."""
        if _get_current_function_mode() is not self:
            yield
            return
        self.__exit__(None, None, None)
        try:
            yield
        finally:
            self.__enter__()


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        for part in value.values():
            yield from _tensors(part)
