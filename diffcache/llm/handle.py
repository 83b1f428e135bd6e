"""A method that stays on a language model, and the callable that ``model.generate`` takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError, UnsupportedModelError
from ..hooks.handle import ATTRIBUTE
from ..methods.language import LanguageConfig
from .decoders import Decoder
from .driver import Generation, generate, language_config
from .families import read_facts
from .pipelines.attaching import PipelineHandle, attach_pipeline, hook_of
from .policies import refusal
from .stats import GenerationStats


class LanguageHandle:
    """One method on one diffusion language model. Reached as ``model.diffcache``; nothing runs until it is asked to.

    Args:
        owner: the model.
        config: the method's.
    """

    def __init__(self, owner: nn.Module, config: LanguageConfig) -> None:
        self.owner, self.config = owner, config
        self._last: GenerationStats | None = None

    def __repr__(self) -> str:
        return f"<diffcache: {self.config.method} on {type(self.owner).__name__}>"

    def generate(self, input_ids: Tensor, **arguments: Any) -> Generation:
        """:func:`diffcache.llm.generate` with this model and method."""
        result = generate(self.owner, input_ids, self.config, **arguments)
        self._last = result.stats
        return result

    @property
    def custom_generate(self) -> Callable[..., Tensor]:
        """For ``model.generate(ids, custom_generate=model.diffcache.custom_generate, max_new_tokens=...)``."""
        return custom_generate(self.config, heard=self._hear)

    def _hear(self, stats: GenerationStats) -> None:
        self._last = stats

    def stats(self) -> GenerationStats | None:
        """Of the last generation; None before the first."""
        return self._last

    def reset(self) -> None:
        """Forget all numbers."""
        self._last = None

    def install(self) -> None:
        """Put the handle on."""
        self.owner.__dict__[ATTRIBUTE] = self

    def restore(self) -> None:
        """Take the handle off. No effect where it was taken off or replaced already."""
        if self.owner.__dict__.get(ATTRIBUTE) is self:
            del self.owner.__dict__[ATTRIBUTE]


def make_handle(model: nn.Module, config: LanguageConfig) -> LanguageHandle | PipelineHandle:
    """A method for a language model, not yet installed.

    Raises:
        UnsupportedModelError: not a diffusion language model, or one that the method does not run on.
    """
    if hook_of(model) is not None or not isinstance(model, nn.Module):  # a loop of its own, as DiffusionGemma's
        return attach_pipeline(model, config)
    reason = refusal(config, read_facts(model))
    if reason is not None:
        raise UnsupportedModelError(reason)
    return LanguageHandle(model, config)


def judge(model: Any, config: LanguageConfig) -> tuple[bool, str | None]:
    """Whether a method leaves every value as it is on a model, and why it does not run there, if it does not."""
    try:
        if hook_of(model) is not None:
            attach_pipeline(model, config)
            return config.exact_on("block-causal"), None
        facts = read_facts(model)
    except UnsupportedModelError as error:
        return False, str(error)
    return config.exact_on(facts.regime), refusal(config, facts)


def custom_generate(
    method: Any = "vanilla", *, heard: Callable[[GenerationStats], None] | None = None, **overrides: Any
) -> Callable[..., Tensor]:
    """A callable for ``model.generate(input_ids, custom_generate=...)`` of transformers.

    ``max_new_tokens`` (or ``max_length``) is the number of new tokens; what else :func:`generate` takes is given to
    ``model.generate`` by name.

    Args:
        method, overrides: as for :func:`generate`.
        heard: called with the numbers of each generation.
    """
    config = language_config(method, **overrides)

    def run(
        model: nn.Module,
        input_ids: Tensor,
        logits_processor: Any = None,
        stopping_criteria: Any = None,
        generation_config: Any = None,
        attention_mask: Tensor | None = None,
        block_length: int | None = None,
        steps: int | None = None,
        mask_id: int | None = None,
        eos_id: int | None = None,
        decoder: str | Decoder = "topk",
        decoder_settings: dict[str, Any] | None = None,
        generator: torch.Generator | None = None,
        on_step: Callable[..., None] | None = None,
        cfg_scale: float = 0.0,
        **others: Any,
    ) -> Tensor:
        if logits_processor:
            names = ", ".join(type(processor).__name__ for processor in logits_processor)
            raise ConfigError(f"logits_processor: {names} would not be applied; sample by decoder_settings temperature")
        if eos_id is None and generation_config.eos_token_id is not None:
            eos = generation_config.eos_token_id
            eos_id = eos[0] if isinstance(eos, list) else eos
        result = generate(
            model, input_ids, config, gen_length=generation_config.max_length - input_ids.shape[1],
            block_length=block_length, steps=steps, mask_id=mask_id, eos_id=eos_id, decoder=decoder,
            decoder_settings=decoder_settings, attention_mask=attention_mask, generator=generator, on_step=on_step,
            cfg_scale=cfg_scale,
        )  # fmt: skip
        if heard is not None:
            heard(result.stats)
        return result.sequences

    return run
