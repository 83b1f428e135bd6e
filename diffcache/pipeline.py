"""The public way in: put a method on a pipeline or on a bare denoiser, and take it off."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from .errors import ConfigError, UnsupportedModelError
from .hooks.anatomy import find_denoisers, inspect_class, inspect_denoiser
from .hooks.compiled import unwrapped
from .hooks.handle import ATTRIBUTE, Handle
from .hooks.identity import identify
from .hooks.making import make_site
from .hooks.recipe import Recipe
from .methods import MethodConfig, make_config
from .methods.base import NamedConfig
from .methods.language import LanguageConfig

Pipe = TypeVar("Pipe")
Model = TypeVar("Model", bound=nn.Module)
Method = str | Path | NamedConfig


def accelerate_pipeline(pipe: Pipe, method: Method = "worldcache", **overrides: Any) -> Pipe:
    """Put a method on every denoiser of a diffusers pipeline, in place; the same object comes back.

    Works with the pipeline's own ``__call__``: nothing is patched on a class, no weights change. Calling it again
    replaces the method. ``pipe.diffcache`` is the handle: ``stats()``, ``reset()``, ``config``, ``restore()``.

    Offloading, layerwise casting, LoRA, quantisers, ``torch.compile`` and other types may come before it or after it.
    ``save_pretrained`` writes the plain model; a deep copy is accelerated, too, and shares nothing with the original.
    Decisions are never part of a compiled graph: with sites ``output``, ``body``, ``block`` and ``module`` a compiled
    denoiser, or its compiled blocks, have one graph that computes and one that reuses (docs/compile.md). Where a method
    decides in the middle of what is compiled, that runs uncompiled and an ``UncompiledWarning`` says so: ``fbcache``
    and ``teacache`` want the blocks compiled (``compile_repeated_blocks``), and partial steps run as they are written.

    Args:
        pipe: a diffusers pipeline with one or two transformer denoisers.
        method: name (see :func:`diffcache.list_methods`), name with settings (``"worldcache:aether"``), configuration
            object, or path to ``.yaml`` / ``.json``.
        overrides: fields of the method's configuration.

    Raises:
        UnsupportedModelError: no transformer denoiser in the pipeline.
        ConfigError: unknown method or field, or a value out of range.
        ScheduleFileError: a configuration or schedule file that cannot be read, or a schedule that was made for
            another model or sampler (another number of steps is refused when the trajectory begins).
    """
    if isinstance(pipe, nn.Module):
        raise UnsupportedModelError(f"{type(pipe).__name__} is a model, not a pipeline: use accelerate_model")
    config = make_config(method, **overrides)
    if isinstance(config, LanguageConfig):
        _attach_language(pipe, config)
        return pipe
    models = {name: unwrapped(model) for name, model in find_denoisers(pipe).items()}
    _install(pipe, models, config, _boundary(pipe))
    return pipe


def accelerate_model(model: Model, method: Method, **overrides: Any) -> Model:
    """Put a method on a bare denoiser, in place. Wrap each sampling loop in :func:`denoising`.

    On a diffusion language model (docs/language-models.md) it is one of ``list_methods("language")``, and
    ``model.diffcache.generate(input_ids, ...)`` runs it.

    Args:
        model: any module with a list of transformer blocks whose forward takes the noisy sample and a timestep, or a
            diffusion language model of transformers.
        method, overrides: as for :func:`accelerate_pipeline`.

    Raises:
        UnsupportedModelError: not a denoiser that diffcache can attach to; the message says why.
        ConfigError, ScheduleFileError: as for :func:`accelerate_pipeline`.
    """
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(f"{type(model).__name__} is not a torch.nn.Module: use accelerate_pipeline")
    config = make_config(method, **overrides)
    inner = unwrapped(model)
    if isinstance(config, LanguageConfig):
        _attach_language(inner, config)
        return model
    _install(inner, {"denoiser": inner}, config, None)
    return model


def _language_only(config: LanguageConfig, name: str) -> str:
    return f"{config.method} is a method for diffusion language models, and {name} is none"


def _attach_language(owner: Any, config: LanguageConfig) -> None:
    from .llm.handle import make_handle  # transformers is needed there alone

    handle = make_handle(owner, config)  # may refuse: an earlier method stays on then
    restore(owner)
    handle.install()


def _install(owner: Any, models: dict[str, nn.Module], config: MethodConfig, boundary: float | None) -> None:
    denoisers = {name: (model, inspect_denoiser(model)) for name, model in models.items()}
    recipe = named_modalities(config.recipe_for(owner), owner)
    _check_modalities(recipe.modalities, denoisers)
    if recipe.calibration is not None:
        recipe.calibration.check_models({name: identify(*found) for name, found in denoisers.items()})
        if not isinstance(owner, nn.Module):
            scheduler = getattr(owner, "scheduler", None)
            recipe.calibration.check_sampler(None if scheduler is None else type(scheduler).__name__)
    for model in models.values():
        present = handle_of(model)
        if present is not None and present.owner is not owner and present.owner is not model:
            raise UnsupportedModelError(
                f"{type(model).__name__} is shared with a pipeline that is accelerated already: restore that one first"
            )
    handle = Handle(owner, denoisers, recipe, boundary)  # may refuse: an earlier method stays on then
    for holder in (owner, *models.values()):
        restore(holder)
    handle.install()


def named_modalities(recipe: Recipe, owner: Any) -> Recipe:
    """The recipe; a world model's pipeline may name the channel groups of its denoiser's output."""
    return recipe if recipe.modalities else replace(recipe, modalities=tuple(getattr(owner, "modalities", ())))


def uncalibrated(method: Method, owner: Any = None) -> tuple[MethodConfig, Recipe]:
    """A method's configuration, and a recipe with its site and predictor, which needs no calibration; on a pipeline or
    model what comes with that counts."""
    config = make_config(method)
    if isinstance(config, LanguageConfig):
        raise UnsupportedModelError(_language_only(config, "a denoiser"))
    never = make_config(config, max_skip=0)  # never skips, so it has no decision to calibrate
    return config, never.recipe() if owner is None else never.recipe_for(owner)


def _check_modalities(widths: tuple[int, ...], denoisers: dict[str, Any]) -> None:
    for _, anatomy in denoisers.values():
        if widths and anatomy.channels is not None and sum(widths) != anatomy.channels:
            raise ConfigError(
                f"modalities: {list(widths)} sum to {sum(widths)}, "
                f"but {anatomy.model_class} has {anatomy.channels} output channels"
            )


def _boundary(pipe: Any) -> float | None:
    """Timestep at which a two-expert pipeline (Wan2.2) switches."""
    ratio = getattr(getattr(pipe, "config", None), "boundary_ratio", None)
    scheduler = getattr(pipe, "scheduler", None)
    return None if ratio is None or scheduler is None else ratio * scheduler.config.num_train_timesteps


def handle_of(pipe_or_model: Any) -> Handle | None:
    """The handle of an accelerated pipeline or denoiser, or None."""
    return getattr(unwrapped(pipe_or_model), "__dict__", {}).get(ATTRIBUTE)


def restore(pipe_or_model: Any) -> None:
    """Take every hook off: outputs are again those of the bare model, bit for bit, and nothing of ours stays.

    Args:
        pipe_or_model: what was accelerated, a denoiser of it, or what ``torch.compile`` made of that; no effect on one
            that is bare.
    """
    handle = handle_of(pipe_or_model)
    if handle is not None:
        handle.restore()
        unwrapped(pipe_or_model).__dict__.pop(ATTRIBUTE, None)  # a shallow copy carries it as well


@contextmanager
def accelerated(pipe: Any, method: Method = "worldcache", **overrides: Any) -> Iterator[Any]:
    """:func:`accelerate_pipeline` (or :func:`accelerate_model`) for the block only; an earlier method comes back.

    Args:
        pipe: a pipeline, or a bare denoiser or language model; the block gets it back.
        method, overrides: as for :func:`accelerate_pipeline`, which also says what is raised. What cannot be put on is
            refused before the block, and an earlier method stays on.
    """
    before = handle_of(pipe)
    attach = accelerate_model if isinstance(pipe, nn.Module) else accelerate_pipeline
    attach(pipe, method, **overrides)
    try:
        yield pipe
    finally:
        restore(pipe)
        if before is not None:
            attach(pipe, before.config)


@contextmanager
def denoising(model: nn.Module, num_inference_steps: int, scheduler: Any = None) -> Iterator[None]:
    """One trajectory of a bare denoiser: the loop inside calls it ``num_inference_steps`` times a branch.

    Args:
        model: a denoiser; without a method on it the block changes nothing, so one loop serves both cases.
        num_inference_steps: number of steps, >= 1.
        scheduler: the sampler of the loop, if it is a diffusers one: its ``step`` then marks the steps (no timestep
            is read from the device) and its sigmas make the axes ``sigma`` and ``logsnr`` available.

    Raises:
        ConfigError: num_inference_steps is out of range.
        UnsupportedModelError: a pipeline, whose own call needs no block, or a language model.
    """
    if isinstance(num_inference_steps, bool) or not isinstance(num_inference_steps, int) or num_inference_steps < 1:
        raise ConfigError(f"num_inference_steps: {num_inference_steps!r} is out of range, must be a whole number >= 1")
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(
            f"{type(model).__name__} is not a torch.nn.Module: a pipeline's own call needs none"
        )
    handle = handle_of(model)
    if handle is None or getattr(handle, "denoises", False):
        yield
        return
    if not isinstance(handle, Handle):
        raise UnsupportedModelError(f"{type(model).__name__} is a language model: use model.diffcache.generate")
    handle.wrapper = model if unwrapped(model) is not model else None
    handle.meet(scheduler)
    clock = handle.clock
    clock.watch(scheduler)
    clock.begin(num_inference_steps, scheduler)
    try:
        yield
    finally:
        clock.end()
        clock.unwatch()


def _supports_language(model: Any, config: LanguageConfig) -> Support:
    from .llm.handle import judge

    exact, reason = judge(unwrapped(model), config)
    return Support("refused", reason) if reason else Support("exact" if exact else "works")


@dataclass(frozen=True)
class Support:
    """Answer of :func:`supports`.

    Attributes:
        status: ``exact`` (never changes a value), ``works`` or ``refused``.
        reason: why it is refused.
    """

    status: str
    reason: str = ""

    def __bool__(self) -> bool:
        return self.status != "refused"


def supports(model: Any, method: Method = "worldcache") -> Support:
    """Whether a method can be put on a pipeline, a denoiser or a denoiser class, without changing it.

    A class is judged by its name and its ``forward``; an instance by its blocks as well. Nothing is computed, so what
    only the first computed step can show is not answered here: whether the body of the model can be proved (sites
    ``body`` and those that listen raise UnsupportedModelError in the run if not), whether a calibration fits, and how
    much memory is needed (see :func:`estimate_memory`). What holds for every transformer denoiser of diffusers is
    measured in ``docs/support.md``.

    Args:
        model: a pipeline, a denoiser, a denoiser class, or a language model.
        method: as for :func:`accelerate_pipeline`.

    Returns:
        True in a condition unless it is refused; ``reason`` then says why.

    Raises:
        ConfigError: unknown method or field, or a value out of range whatever the model.
    """
    config = make_config(method)
    if isinstance(config, LanguageConfig):
        return _supports_language(model, config)
    config, recipe = uncalibrated(config)
    try:
        if isinstance(model, type):
            inspect_class(model)
        else:
            models = {"denoiser": model} if isinstance(model, nn.Module) else find_denoisers(model)
            for denoiser in map(unwrapped, models.values()):
                make_site(denoiser, inspect_denoiser(denoiser), recipe)
    except (UnsupportedModelError, ConfigError) as error:  # of the model: the configuration itself is sound
        return Support("refused", str(error))
    return Support("exact" if config.max_skip == 0 else "works")
