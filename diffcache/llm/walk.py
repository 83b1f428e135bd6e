"""From layer to layer, for policies that change which rows go on, or what a layer computes of them."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .passes import KEYWORD, ForwardPass
from .rows import Rows
from .state import SequenceState


class Walk:
    """The layers of one forward, called one by one; the rows may change between two of them.

    What it relies on is common to the families that run here: the body has ``embed_tokens``, ``rotary_emb``, ``layers``
    and ``norm``; a layer has ``input_layernorm``, ``self_attn``, ``post_attention_layernorm`` and ``mlp``, each added
    to the hidden states.

    Args:
        body: the model without its head.
        current: the pass; its ``rows`` are those of the hidden states under way.
        state: the sequences.
    """

    def __init__(self, body: Any, current: ForwardPass, state: SequenceState) -> None:
        self.body, self.current, self.state = body, current, state
        self._rotary: tuple[Tensor, Tensor] | None = None  # of every position: rows change from layer to layer
        self._known: tuple[Rows, dict[str, Any]] | None = None

    def run(self) -> Tensor:
        """Hidden states behind the last norm, of the rows that the pass has then."""
        walker = self.current.plan.walker
        x = self.body.embed_tokens(self.current.rows.take(self.state.ids))
        for index, layer in enumerate(self.body.layers):
            x = walker.layer(self, index, layer, x)
        return self.body.norm(x)

    def call(self, layer: nn.Module, x: Tensor, rows: Rows) -> Tensor:
        """A whole layer on ``rows``, whose hidden states are ``x``."""
        return layer(x, attention_mask=None, **self._arguments(x, rows))

    def attention(self, layer: nn.Module, normed: Tensor, rows: Rows) -> Tensor:
        """What attention adds to the hidden states of ``rows``; writes their keys and values."""
        return layer.self_attn(normed, attention_mask=None, **self._arguments(normed, rows))[0]

    def _arguments(self, x: Tensor, rows: Rows) -> dict[str, Any]:
        self.current.rows = rows
        if self._rotary is None:
            self._rotary = self.body.rotary_emb(x, self.state.positions[None])
        if self._known is None or self._known[0] is not rows:
            turned = tuple(rows.take(t.expand(len(x), -1, -1)) for t in self._rotary)
            where = {"position_ids": rows.positions(x.device), "position_embeddings": turned}
            self._known = rows, where
        return {**self._known[1], KEYWORD: self.current}
