"""What to answer and how to decode, checked before anything heavy happens."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ConfigError

MOST_TOKENS = 1_000_000


@dataclass(frozen=True)
class TextRequest:
    """How a language model decodes; None leaves a field to the model.

    Attributes:
        gen_length: new tokens.
        block_length: tokens of a block, of bidirectional models.
        steps: denoising steps in all; None: the decoder decides.
        decoder: its name, with settings behind a colon: ``threshold:threshold=0.8``.
        raw: whether the prompt is given as it is, not as a turn of a chat.
        seed: of the decoder's noise.
        guidance: scale of classifier-free guidance (LLaDA's, 0 without).

    Raises:
        ConfigError: a number is out of range.
    """

    gen_length: int | None = None
    block_length: int | None = None
    steps: int | None = None
    decoder: str | None = None
    raw: bool = False
    seed: int = 0
    guidance: float | None = None

    def __post_init__(self) -> None:
        for name in ("gen_length", "block_length", "steps"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= MOST_TOKENS:
                raise ConfigError(f"{name}: {value} is out of range, must be a whole number from 1 to {MOST_TOKENS}")
        if self.guidance is not None and not 0 <= self.guidance < 1e6:
            raise ConfigError(f"guidance: {self.guidance} is out of range, must be a finite number >= 0")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed: {self.seed} is out of range, must be a whole number from 0 to 2^63 - 1")
