"""Block-causal video: attention over the keys of finished chunks is kept with its log-sum-exp, and merged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch.nn.functional as F
from diffusers.hooks import ModelHook
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from ...errors import ConfigError, UnsupportedModelError
from ...hooks.attending import Attending, Attention
from ...methods.language import FlashBlockConfig, LanguageConfig
from ..external import ExternalStore, merged
from ..heads import HeadListener, load_heads
from ..plan import External
from ..stats import Tally


@dataclass(frozen=True)
class Port:
    """What differs between the classes: where the cache is, and which calls only read it.

    Attributes:
        blocks: name of the list of blocks; each has its self-attention as ``attn1``.
        reads: arguments of the model's forward -> whether the call denoises over cached keys and writes none.
        keys: the same -> what the first layer's cache holds; other tensors, or the same written again, are other keys.
    """

    blocks: str
    reads: Callable[[dict[str, Any]], bool]
    keys: Callable[[dict[str, Any]], list[Tensor]]


def _far_keys(arguments: dict[str, Any]) -> list[Tensor]:
    return [arguments["kv_cache"][0][name] for name in ("full_cache", "compressed_cache")]


def _refiner_keys(arguments: dict[str, Any]) -> list[Tensor]:
    layer = arguments["kv_cache"].get(0)
    return [pair[0] for pair in (layer.get_history(), layer.get_sink()) if pair is not None]


PORTS: dict[str, Port] = {
    "AnyFlowFARTransformer3DModel": Port(
        "blocks", lambda given: not (given.get("kv_cache_flag") or {}).get("is_cache_step"), _far_keys
    ),
    "SanaWMLTX2RefinerTransformer3DModel": Port(
        "transformer_blocks", lambda given: given.get("kv_cache_mode") == "inject", _refiner_keys
    ),
}
"""Video models with a rolling cache of keys: class -> where it is."""


class Chunk:
    """The chunk under way of one branch, which has a cache of its own.

    Attributes:
        store: attention over the cache, of each layer.
        step: steps of the chunk that were seen.
        since: steps since the part outside was computed; None while nothing is stored.
        external: how it is had at this step.
    """

    def __init__(self) -> None:
        self.store = ExternalStore()
        self.mark: Any = None
        self.level = float("inf")
        self.begin()

    def begin(self) -> None:
        """Other keys, another shape or another trajectory: what is stored is of no use."""
        self.step, self.since, self.external = 0, None, External((0, 0))


class RollingHook(ModelHook):
    """Stands around the forward of a model in :data:`PORTS`, and around the self-attention of its blocks.

    Every token of a chunk changes at every step, so that ``dirty`` counts steps: 1 computes the part outside at each.
    A calibrated mask of heads decides instead. Within the self-attention of a reading call the model's processor runs
    as it is, with torch's attention in place of the backend that was chosen: there the parts are merged. Its keys are
    the cached ones, then the chunk's own, then what the processor pads with: padding counts as it does without us.
    ``parts`` are the modules inside, and the hooks that belong around them.
    Memory: ``4 * layers * B * tokens * heads * (head_dim + 1)`` for each branch, ``tokens`` of a chunk.

    Args:
        model: of a class in :data:`PORTS`.
        config: of ``flashblock``.

    Raises:
        UnsupportedModelError: another method: the model caches the keys of finished chunks itself.
        ConfigError: rows of a language model (``over``).
    """

    def __init__(self, model: nn.Module, config: LanguageConfig) -> None:
        super().__init__()
        if not isinstance(config, FlashBlockConfig):
            raise UnsupportedModelError(
                f"{config.method}: {type(model).__name__} caches the keys of finished chunks itself, so that only "
                "flashblock saves more"
            )
        if config.over != "exact":
            raise ConfigError(f"over: '{config.over}' is for bidirectional language models, must be exact here")
        self.config, self.port = config, PORTS[type(model).__name__]
        blocks = enumerate(getattr(model, self.port.blocks))
        self.parts = [(block.attn1, ChunkAttention(layer, self)) for layer, block in blocks]
        self.heads = None if config.heads is None else load_heads(config.heads, model)
        self.tally, self.listener = Tally(), None
        self.current: Chunk | None = None
        self._chunks: Any = WeakTensorKeyDictionary()  # a branch's cache -> its chunk; both go together

    # -- around the model ----------------------------------------------------------------------------------------------

    def listen(self, listener: HeadListener) -> None:
        """Compute the part outside at every step, and let it be heard."""
        self.listener = listener

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        given = kwargs if kwargs.get("kv_cache") is not None else {}
        keys = self.port.keys(given) if given and self.port.reads(given) else []
        if not keys:  # a call that writes the cache, or that has none
            self._begin()
            return self.fn_ref.original_forward(*args, **kwargs)
        sample = args[0] if args else kwargs["hidden_states"]
        self.current = self._next(keys, sample, kwargs["timestep"])
        try:
            output = self.fn_ref.original_forward(*args, **kwargs)
        except BaseException:
            self.forget()
            raise
        finally:
            self.current = None
        self._count()
        return output

    def _begin(self) -> None:
        for chunk in self._chunks.values():
            chunk.begin()

    def _next(self, keys: list[Tensor], sample: Tensor, timestep: Tensor) -> Chunk:
        """The chunk of this branch, with how its part outside is had now. Reads the time from the device."""
        if keys[0] not in self._chunks:
            self._chunks[keys[0]] = Chunk()
        chunk = self._chunks[keys[0]]
        mark = tuple(sample.shape), sample.dtype, tuple(0 if key.is_inference() else key._version for key in keys)
        level = float(timestep.reshape(-1)[-1])
        if mark != chunk.mark or level > chunk.level:  # noise rises: another trajectory over the same cache
            chunk.begin()
        chunk.mark, chunk.level = mark, level
        chunk.external = self._external(chunk, sample.device)
        chunk.step += 1
        return chunk

    def _external(self, chunk: Chunk, device: Any) -> External:
        """Keys inside are only known where attention is computed."""
        if self.listener is not None:
            if chunk.step == 0:
                self.listener.begin()
            self.listener.step = chunk.step
            return External((0, 0), store=False, listener=self.listener)
        if chunk.since is None or chunk.step < self.config.warmup:
            fresh = True
        else:
            fresh = self.heads is None and chunk.since >= max(self.config.dirty, 1)
        chunk.since = 1 if fresh else chunk.since + 1
        if fresh:
            return External((0, 0))
        return External((0, 0), (), heads=None if self.heads is None else self.heads.of(chunk.step, device))

    def _count(self) -> None:
        self.tally.steps += 1
        self.tally.forwards += 1
        held = sum(part.store.bytes for part in self._chunks.values())
        self.tally.residual_bytes = max(self.tally.residual_bytes, held)

    def forget(self) -> None:
        """Free what is stored."""
        self._chunks = WeakTensorKeyDictionary()

    # -- inside attention ----------------------------------------------------------------------------------------------

    def attend(self, chunk: Chunk, layer: int, own: int, number: int, call: Attention) -> Tensor:
        """One attention of a chunk with ``own`` tokens; the queries behind them are padding, nobody reads them."""
        cached = call.key.shape[-2] - call.query.shape[-2]
        if call.mask is not None or call.rest.get("is_causal") or cached <= 0:
            return call.run()
        external = replace(chunk.external, inner=(cached, call.key.shape[-2]))
        if external.use and layer not in chunk.store.parts:
            external = External(external.inner)
        scale = call.rest.get("scale")
        scale = call.query.shape[-1] ** -0.5 if scale is None else scale
        q = call.query[:, :, :own]
        out = merged(external, chunk.store, self.tally.external, layer, (q, call.key, call.value), scale)
        if layer == 0:
            self.tally.external.forwards += external.use
            self.tally.rows += own
            self.tally.dense += own
        self.tally.row_layers += own
        return F.pad(out, (0, 0, 0, call.query.shape[-2] - own))


class ChunkAttention(ModelHook):
    """Around the self-attention of one block."""

    def __init__(self, layer: int, owner: RollingHook) -> None:
        super().__init__()
        self.layer, self.owner = layer, owner

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        run, chunk, processor = self.fn_ref.original_forward, self.owner.current, module.processor
        if chunk is None or getattr(processor, "_parallel_config", None) is not None:
            return run(*args, **kwargs)
        hidden = args[0] if args else kwargs["hidden_states"]
        attend = partial(self.owner.attend, chunk, self.layer, hidden.shape[1])
        with _plain(processor), Attending(attend):
            return run(*args, **kwargs)


@contextmanager
def _plain(processor: Any) -> Iterator[None]:
    """Within, a processor calls torch's attention, whatever backend was chosen for it."""
    own = {"_attention_backend": "native", "_SUPPORTED_BACKENDS": ("native",)}
    before = {name: vars(processor)[name] for name in own if name in vars(processor)}
    vars(processor).update(own)
    try:
        yield
    finally:
        for name in own:
            vars(processor).pop(name)
        vars(processor).update(before)
