"""A language model, a method and a decoder, checked and loaded: ready to be asked."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError, UnsupportedModelError
from ..llm import Decoder, Facts, Threshold, generate, make_decoder, read_facts
from ..llm.driver import language_config
from ..llm.policies import refusal
from ..llm.state import SequenceState
from ..media.request import short_name
from ..media.session import hide_bars, read_device, read_dtype, read_fields
from ..methods import parse_settings
from ..methods.language import LanguageConfig
from ..zoo import LanguageEntry, ModelNotAvailableError, find_language_model, load_language_model
from .answers import Answer
from .request import TextRequest

THRESHOLD, GEN_LENGTH, BLOCK_LENGTH = 0.9, 256, 32  # of models that the zoo does not know


@dataclass(frozen=True)
class TextSession:
    """A model that is asked with one way of decoding, under any method.

    Attributes:
        name: of the model, without folders.
        model, tokenizer: of transformers.
        config: the method that was asked for.
        decoder: which tokens hold.
        gen_length, block_length: in tokens; ``steps`` in all, or None where the decoder decides.
        seed: of the decoder's noise.
        raw: whether prompts are given as they are.
        guidance: scale of classifier-free guidance; each step computes the sequence twice then. 0: without.
    """

    name: str
    model: Any
    tokenizer: Any
    config: LanguageConfig
    decoder: Decoder
    gen_length: int
    block_length: int
    steps: int | None = None
    seed: int = 0
    raw: bool = False
    guidance: float = 0.0

    @property
    def facts(self) -> Facts:
        return read_facts(self.model)

    @property
    def about(self) -> str:
        """The decoding in one line."""
        steps = f", {self.steps} steps" if self.steps else ""
        steps += f", guidance {self.guidance:g}" if self.guidance else ""
        place = f"{self.model.device.type}, {str(self.model.dtype).removeprefix('torch.')}"
        return f"{self.gen_length} new tokens, blocks of {self.block_length}, {describe(self.decoder)}{steps} · {place}"

    def encode(self, prompt: str) -> Tensor:
        """Ids ``[1, P]``; as a turn of a chat where the tokenizer has a template for that.

        Raises:
            ConfigError: an empty prompt, or one that leaves no room for the new tokens.
        """
        if not prompt.strip():
            raise ConfigError("prompt: empty, must hold something to answer")
        if self.chats:
            turns = [{"role": "user", "content": prompt}]
            text = self.tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
            ids = self.tokenizer(text, add_special_tokens=False).input_ids
        else:
            ids = self.tokenizer(prompt).input_ids
        room = getattr(self.model.config, "max_position_embeddings", None)
        if room is not None and len(ids) + self.gen_length > room:
            raise ConfigError(
                f"gen_length: {self.gen_length} new tokens and a prompt of {len(ids)} are more than the {room} "
                f"positions of {self.name}, must be less"
            )
        return torch.tensor([ids])

    @property
    def chats(self) -> bool:
        return not self.raw and getattr(self.tokenizer, "chat_template", None) is not None

    def strange(self, prompt: str) -> list[str]:
        """Words of a prompt that the tokenizer does not know."""
        unknown = getattr(self.tokenizer, "unk_token_id", None)
        if unknown is None or unknown not in self.tokenizer(prompt).input_ids:
            return []
        return [word for word in prompt.split() if unknown in self.tokenizer(word).input_ids]

    def ask(
        self,
        ids: Tensor,
        config: LanguageConfig | None = None,
        on_step: Callable[[SequenceState], None] | None = None,
        **changed: Any,
    ) -> Answer:
        """One answer.

        Args:
            ids: of the prompt, ``[1, P]``.
            config: another method than the session's.
            on_step: called after each step.
            changed: other ``steps`` or ``block_length``.
        """
        generator = torch.Generator(self.model.device).manual_seed(self.seed)
        shape = {"steps": self.steps, "block_length": self.block_length, **changed}
        found = generate(
            self.model, ids, config or self.config, gen_length=self.gen_length, decoder=self.decoder,
            generator=generator, on_step=on_step, cfg_scale=self.guidance, **shape,
        )  # fmt: skip
        new, end = found.sequences[0, ids.shape[1] :].tolist(), self.facts.eos_id
        kept = new[: new.index(end)] if end in new else new
        text = self.tokenizer.decode(kept, skip_special_tokens=True)
        return Answer(text, kept, len(kept) < len(new), found.stats, found.stats.seconds)


def open_text(
    model: str,
    method: str,
    settings: Sequence[str],
    request: TextRequest,
    dtype: str | None = None,
    device: str | None = None,
) -> TextSession:
    """Check every argument, then load the model.

    Args:
        model: zoo name, hub id of a zoo model, or a folder.
        method: name with optional settings, or path of a configuration.
        settings: ``key=value`` fields of the method, which win over those in ``method``.
        request: how to decode.
        dtype, device: None picks float32 for embedded models and folders, the checkpoint's own for the hub's.

    Raises:
        ConfigError, ScheduleFileError: an argument is wrong, or the files of a local model are damaged.
        ModelNotAvailableError: a hub model that cannot be fetched.
        UnsupportedModelError: a method for denoisers, one that does not run on this model, or no diffusion model.
    """
    entry = find_language_model(model)
    config = language_config(method, **read_fields(settings))
    decoder = read_decoder(request.decoder, entry)
    where, precision = read_device(device), read_dtype(dtype)
    if entry is not None:  # what the zoo can tell is better said before gigabytes are read
        _fit(config, request, _foretold(entry), entry)
    network, tokenizer = load_text(model, entry, precision, where)
    length, block = _fit(config, request, read_facts(network), entry)
    name = entry.name if entry else short_name(model)
    return TextSession(
        name,
        network,
        tokenizer,
        config,
        decoder,
        length,
        block,
        request.steps,
        request.seed,
        request.raw,
        request.guidance or 0.0,
    )


def _foretold(entry: LanguageEntry) -> Facts:
    """What a policy asks of a model, by the zoo's entry; the number of layers is not there."""
    return Facts(family=entry.model, layers=0, **entry.diffusion)


def _fit(config: LanguageConfig, request: TextRequest, facts: Facts, entry: LanguageEntry | None) -> tuple[int, int]:
    """:func:`shape_of`, once the method is known to run on such a model."""
    reason = refusal(config, facts)
    if reason is not None:
        raise UnsupportedModelError(f"method: {reason}")
    return shape_of(request, facts, entry)


def shape_of(request: TextRequest, facts: Facts, entry: LanguageEntry | None) -> tuple[int, int]:
    """New tokens, and tokens of a block; what does not fit together is said before anything is decoded."""
    length = request.gen_length or (entry.gen_length if entry else GEN_LENGTH)
    if facts.block_length is not None:
        if request.block_length not in (None, facts.block_length):
            raise ConfigError(
                f"block_length: {request.block_length} is out of range, the model was trained with {facts.block_length}"
            )
        return length, facts.block_length
    block = request.block_length or min(entry.block_length if entry else BLOCK_LENGTH, length)
    if length % block:
        raise ConfigError(f"block_length: {block} does not divide gen_length {length}")
    return length, block


def load_text(
    model: str,
    entry: LanguageEntry | None,
    dtype: torch.dtype | None,
    device: torch.device | None,
    download: bool = True,
) -> Any:
    """Model and tokenizer; without the loading bars of the libraries where nobody would see a download."""
    hide_bars(entry)
    try:
        return load_language_model(model, dtype=dtype, device=device, download=download)
    except ModelNotAvailableError as error:
        if (entry and entry.embedded) or Path(model).is_dir():
            raise ConfigError(f"model: {error}") from error  # what lies on this disk was named by the user
        raise
    except Exception as error:
        if entry is None:  # a folder: whatever is wrong with its files
            raise ConfigError(f"model: '{model}' cannot be loaded: {' '.join(str(error).split())[:160]}") from error
        raise


def read_decoder(text: str | None, entry: LanguageEntry | None = None) -> Decoder:
    """A decoder from its name with settings; the model's own threshold where none is named.

    Raises:
        ConfigError: an unknown name or setting, or a value out of range.
    """
    own = entry.threshold if entry else THRESHOLD
    if text is None:
        return Threshold(threshold=own)
    name, _, settings = text.partition(":")
    given = parse_settings(settings)
    if name == Threshold.name:
        given.setdefault("threshold", own)
    return make_decoder(name, **given)


def describe(decoder: Decoder) -> str:
    """A decoder with its settings, as ``--decoder`` takes it."""
    given = {key: value for key, value in vars(decoder).items() if value != getattr(type(decoder), key, None)}
    given |= {"threshold": decoder.threshold} if isinstance(decoder, Threshold) else {}
    return decoder.name + (":" + ",".join(f"{k}={json.dumps(v)}" for k, v in given.items()) if given else "")
