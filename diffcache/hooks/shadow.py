"""A denoiser without numbers: shapes, dtypes and devices alone go through it, to learn what a site would hold.

The denoiser's own code runs, on a copy whose weights and inputs have no memory (torch's fake tensors); nothing is
computed, and the original is not touched. Where code asks for a number that is not there it is told 1, or True: a body
is taken as proved, and a mask as letting everything pass. A denoiser that cuts its text by a mask may hold another
amount, then.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import UnsupportedModelError
from .anatomy import inspect_denoiser
from .cache import Cache, Moment
from .copying import copy_plain
from .handle import ATTRIBUTE
from .making import make_site
from .outputs import flatten
from .recipe import Recipe


class Shadow:
    """A copy of a denoiser that has shapes only.

    Args:
        model: a denoiser, bare or accelerated.
        recipe: the method whose site is put on the copy.

    Raises:
        UnsupportedModelError: the denoiser does not have that site.
    """

    def __init__(self, model: nn.Module, recipe: Recipe) -> None:
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        memo: dict[int, Any] = {}
        for tensor in (*model.parameters(), *model.buffers()):
            with self._mode:
                like = torch.empty_like(tensor.detach())
            memo[id(tensor)] = nn.Parameter(like, False) if isinstance(tensor, nn.Parameter) else like
        self.model = copy_plain(model, memo, (ATTRIBUTE,))
        self._device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self.site = make_site(self.model, inspect_denoiser(self.model), recipe)
        self.site.install(self.model)

    def call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, Cache]:
        """One computed step: a return value of the right shapes, all zeros, and the cache of its branch.

        Raises:
            UnsupportedModelError: the denoiser's code needs numbers that a shape cannot tell.
        """
        cache = self.site.cache()
        try:
            with torch.no_grad(), self._mode, _Answers():
                run = partial(self.model, *map(self._faded, args), **{k: self._faded(v) for k, v in kwargs.items()})
                tensors, template = flatten(self.site.compute(run, cache, Moment(0, 0.0)))
        except (DynamicOutputShapeException, NotImplementedError, RuntimeError) as error:
            name = type(self.model).__name__
            reason = " ".join(str(error).split())[:120] or type(error).__name__
            raise UnsupportedModelError(f"{name}: its shapes depend on numbers: {reason}") from error
        return template.rebuild([torch.zeros(t.shape, dtype=t.dtype, device=t.device) for t in tensors]), cache

    def _faded(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return torch.empty(value.shape, dtype=value.dtype, device=self._device if value.is_meta else value.device)
        if isinstance(value, Mapping):
            return {name: self._faded(part) for name, part in value.items()}
        return type(value)(map(self._faded, value)) if type(value) in (list, tuple) else value


class _Answers(TorchDispatchMode):
    """Tells those who read a number from a tensor that it is 1, and those who look for what is true that all is."""

    supports_higher_order_operators = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        try:
            return func(*args, **(kwargs or {}))
        except DataDependentOutputException:
            dtype = args[0].dtype
            return True if dtype is torch.bool else 1.0 if dtype.is_floating_point else 1
        except DynamicOutputShapeException:
            if func is torch.ops.aten.nonzero.default:
                return args[0].new_zeros((args[0].numel(), args[0].dim()), dtype=torch.long)
            if func is torch.ops.aten.index.Tensor:
                return func(args[0], [place for index in args[1] for place in _everywhere(index)])
            raise


def _everywhere(index: Tensor | None) -> list[Tensor | None]:
    """An index as numbers: a mask lets everything pass."""
    if index is None or index.dtype not in (torch.bool, torch.uint8):
        return [index]
    return [index.new_zeros(index.numel(), dtype=torch.long)] * index.dim()
