"""A method on a pipeline: ``pipe.diffcache``, and what is measured for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from ...errors import UnsupportedModelError
from ...hooks.attach import attach, detach
from ...hooks.handle import ATTRIBUTE
from ...methods.language import FlashBlockConfig, LanguageConfig
from ..heads import HeadListener, HeadMask, sizes
from ..stats import GenerationStats
from .canvas import CanvasHook
from .refinement import RefinementHook
from .rolling import PORTS, RollingHook

HOOKS: dict[str, type] = {
    "LLaDA2Pipeline": RefinementHook,
    "DiffusionGemmaPipeline": CanvasHook,
    "DiffusionGemmaForBlockDiffusion": CanvasHook,
    "AnyFlowFARPipeline": RollingHook,
    "SanaWMLTX2Refiner": RollingHook,
    **dict.fromkeys(PORTS, RollingHook),
}
"""Class of the pipeline, or of a model that others' loops call -> what stands around its forward."""


class PipelineHandle:
    """One method on one pipeline of diffusers. Reached as ``pipe.diffcache``; call the pipeline as ever.

    Args:
        owner: the pipeline.
        config: of the method.
        hook: around its model's forward.
    """

    def __init__(self, owner: Any, config: LanguageConfig, hook: Any) -> None:
        self.owner, self.config, self.hook = owner, config, hook
        self._model = _model(owner)
        self.denoises = isinstance(hook, RollingHook)  # inside a loop that is not ours, and follows its calls
        self._hooks = [(self._model, hook), *getattr(hook, "parts", ())]

    def __repr__(self) -> str:
        return f"<diffcache: {self.config.method} on {type(self.owner).__name__}>"

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """The owner's own ``generate``, or call."""
        return getattr(self.owner, "generate", self.owner)(*args, **kwargs)

    def install(self) -> None:
        """Put the hook on."""
        for module, hook in self._hooks:
            attach(module, hook)
        for holder in (self.owner, self._model):
            holder.__dict__[ATTRIBUTE] = self

    def stats(self) -> GenerationStats:
        """Since the last reset; tokens and seconds are the pipeline's to count and stay 0."""
        return self.hook.tally.stats(self.config.method, type(self.owner).__name__, sizes(self._model)[0])

    def reset(self) -> None:
        """Forget all numbers, and free memory."""
        self.hook.tally = type(self.hook.tally)()
        self.hook.forget()

    def restore(self) -> None:
        """Take the hook off. No effect where it was taken off or replaced already."""
        if self._model.__dict__.get(ATTRIBUTE) is not self:
            return
        for module, _ in self._hooks:
            detach(module)
        for holder in (self.owner, self._model):
            holder.__dict__.pop(ATTRIBUTE, None)


def attach_pipeline(pipe: Any, config: LanguageConfig) -> PipelineHandle:
    """A method on a pipeline of diffusers for diffusion language models, not yet installed.

    Raises:
        UnsupportedModelError: another pipeline, or a model that the method does not run on.
    """
    hook = hook_of(pipe)
    if hook is None:
        raise UnsupportedModelError(
            f"{config.method} is a method for diffusion language models and block-causal video, and "
            f"{type(pipe).__name__} is none of {', '.join(HOOKS)}"
        )
    return PipelineHandle(pipe, config, hook(_model(pipe), config))


def hook_of(owner: Any) -> type | None:
    """What stands around the forward of a pipeline's model, or of a model that generates canvases itself."""
    return next((HOOKS[cls.__name__] for cls in type(owner).__mro__ if cls.__name__ in HOOKS), None)


def _model(owner: Any) -> Any:
    if isinstance(owner, nn.Module):
        return owner
    return owner.transformer if hasattr(owner, "transformer") else owner.model


@contextmanager
def listening(pipe: Any, *, similarity: float = 0.85, shift: float = 0.05, steps: int = 8) -> Iterator[list[HeadMask]]:
    """Measure which heads must compute attention outside the block: call the pipeline inside, with typical prompts.

    >>> with listening(pipe) as masks:  # doctest: +SKIP
    ...     pipe(prompt=prompts, gen_length=256)
    >>> masks[0].save("heads.safetensors")  # doctest: +SKIP

    Args:
        pipe: a bare pipeline.
        similarity, shift, steps: as for :func:`diffcache.llm.calibrate_heads`.
    """
    handle = attach_pipeline(pipe, FlashBlockConfig())
    listener = HeadListener(*sizes(_model(pipe)), steps, similarity, shift)
    handle.hook.listen(listener)
    handle.install()
    masks: list[HeadMask] = []
    try:
        yield masks
        masks.append(HeadMask(listener.mask(), type(_model(pipe)).__name__))
    finally:
        handle.restore()
