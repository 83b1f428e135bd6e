"""DiffusionGemma: the part of the decoder's attention that looks at the encoder's keys is kept and merged."""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import Any

from diffusers.hooks import ModelHook
from torch import Tensor, nn

from ...errors import UnsupportedModelError
from ...methods.language import FlashBlockConfig, LanguageConfig
from ..external import ExternalStore, ExternalWork, merged
from ..heads import HeadListener
from ..passes import KEYWORD, attending
from ..plan import External
from ..stats import Tally
from .reuse import Reuse


class CanvasPass:
    """One call of the decoder: keys outside are the encoder's, whatever layer, window or head size."""

    def __init__(self, external: External, store: ExternalStore, work: ExternalWork, canvas: int) -> None:
        self.external, self.store, self.work, self.canvas = external, store, work, canvas

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None) -> Tensor:
        """``[B, H, canvas, d]``; the canvas' own keys are the last ones."""
        external = replace(self.external, inner=(k.shape[2] - self.canvas, k.shape[2]))
        return merged(external, self.store, self.work, layer, (q, k, v), scale, mask)


class CanvasHook(ModelHook):
    """Adds the pass to every call of the decoder; the encoder, and calls of another form, stay what they are.

    Every canvas token changes at every step, so that the rule that counts them seldom reuses; a calibrated mask of
    heads does (:func:`diffcache.llm.pipelines.listening`).

    Args:
        model: ``DiffusionGemmaForBlockDiffusion``.
        config: of ``flashblock``.

    Raises:
        UnsupportedModelError: another method: nothing else is to be saved, the encoder's keys are cached already.
    """

    def __init__(self, model: nn.Module, config: LanguageConfig) -> None:
        super().__init__()
        if not isinstance(config, FlashBlockConfig):
            raise UnsupportedModelError(
                f"{config.method}: DiffusionGemma caches its encoder's keys itself, so that only flashblock saves more"
            )
        self.config = config
        self.reuse, self.store, self.tally = Reuse(config, model), ExternalStore(), Tally()
        self._prefix: Any = None

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        cache = kwargs.get("cache", kwargs.get("past_key_values"))
        canvas = kwargs.get("decoder_input_ids")
        if args or canvas is None or cache is None or kwargs.get("input_ids") is not None or _static(cache):
            return self.fn_ref.original_forward(*args, **kwargs)
        self._follow(cache)
        asked = self.reuse.asks(canvas)
        external = self.reuse.next((0, 0), None if asked is None else asked.tolist())
        current = CanvasPass(external, self.store, self.tally.external, canvas.shape[1])
        with attending(module):
            output = self.fn_ref.original_forward(**kwargs, **{KEYWORD: current})
        self._count(module, current, canvas)
        return output

    def _follow(self, cache: Any) -> None:
        """A canvas begins where the encoder's keys are others: another cache, or a longer one."""
        now = weakref.ref(cache), cache.get_seq_length()
        if now != self._prefix:
            self._prefix = now
            self.reuse.begin()

    def _count(self, module: nn.Module, current: CanvasPass, canvas: Tensor) -> None:
        tally, layers = self.tally, module.config.text_config.num_hidden_layers
        tally.steps += 1
        tally.forwards += 1
        tally.rows += canvas.shape[1]
        tally.row_layers += canvas.shape[1] * layers
        tally.dense += canvas.shape[1]
        tally.residual_bytes = max(tally.residual_bytes, self.store.bytes)
        if current.external.use:
            tally.external.forwards += 1

    def listen(self, listener: HeadListener) -> None:
        """Compute the part outside at every step, and let it be heard."""
        self.reuse.listener = listener

    def forget(self) -> None:
        """Free what is stored."""
        self.store.parts.clear()
        self._prefix = None
        self.reuse.begin()


def _static(cache: Any) -> bool:
    """A static cache leaves room behind its keys: the canvas' own are not the last ones."""
    return bool(getattr(cache, "is_compileable", False))
