"""From a name or a folder to a diffusion language model of a native transformers class, with its tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import unknown
from .language import LanguageEntry, find_language_model, list_language_models
from .loading import WEIGHTS, ModelNotAvailableError, check_files, failure_cause, without_bars

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

REMEDY = "try --model tiny-llada"


def load_language_model(
    name: str,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    download: bool = True,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model that is ready to decode (in evaluation mode, ``config.diffusion`` says how), and its tokenizer.

    Args:
        name: of :func:`diffcache.zoo.list_language_models`, its hub id, or a folder that ``save_pretrained`` wrote.
        dtype: fp32 for embedded models and folders by default, the checkpoint's own for the hub's.
        device: where to put it; the CPU by default.
        download: whether the hub may be asked for what the local cache lacks.

    Raises:
        ModelNotAvailableError: an unknown name, missing or damaged files, a failed download.
    """
    entry = find_language_model(name)
    if entry is None or entry.embedded:
        model, tokenizer = _load_folder(WEIGHTS / name if entry else Path(name), dtype)
    else:
        model, tokenizer = _load_from_hub(entry, dtype, download)
    return (model if device is None else model.to(device)), tokenizer


def _load_folder(folder: Path, dtype: torch.dtype | None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    import torch
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    if folder.parent == WEIGHTS:
        check_files(folder)
    elif not (folder / "config.json").is_file():
        raise ModelNotAvailableError(unknown("language model", str(folder), list_language_models()))
    with without_bars():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype or torch.float32, local_files_only=True)
    return model.eval(), PreTrainedTokenizerFast.from_pretrained(folder)


def _load_from_hub(
    entry: LanguageEntry, dtype: torch.dtype | None, download: bool
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """From the local cache if everything is there, else from the hub. Remote code is never run."""
    from transformers import AutoTokenizer

    error: Exception | None = None
    for local_only in (True, False) if download else (True,):
        try:
            model = load_checkpoint(entry, entry.source, dtype=dtype, local_files_only=local_only)
            return model, AutoTokenizer.from_pretrained(entry.source, local_files_only=local_only)
        except Exception as failure:  # hub, network, disk and weight errors share no base class
            error = failure
    cause = failure_cause(error) if download else "not in the local cache"
    raise ModelNotAvailableError(f"{entry.name} ({entry.source}): {cause}; {REMEDY}") from error


def load_checkpoint(
    entry: LanguageEntry, source: str | Path, *, dtype: torch.dtype | None = None, local_files_only: bool = False
) -> PreTrainedModel:
    """The weights in ``source``, a hub id or a folder, in the entry's native class, in evaluation mode."""
    import transformers

    fields, _ = transformers.PretrainedConfig.get_config_dict(source, local_files_only=local_files_only)
    native = getattr(transformers, entry.model)
    model = (_parting(native, entry.fused) if entry.fused else native).from_pretrained(
        source,
        config=native_config(entry, fields),
        key_mapping=dict(entry.key_mapping) or None,
        dtype=dtype or "auto",
        local_files_only=local_files_only,
    )
    model.__class__ = native
    vars(model).pop("_weight_conversions", None)  # it is a native model now, and is saved as one
    return model.eval()


def _parting(native: type, fused: Mapping[str, tuple[str, ...]]) -> type:
    """A class that loads fused weights; transformers knows how by its name, so that no other load is touched."""
    from transformers.conversion_mapping import register_checkpoint_conversion_mapping
    from transformers.core_model_loading import Split, WeightConverter

    name = f"{native.__name__}FromFused"
    parts = [WeightConverter(source, list(targets), [Split(dim=0)]) for source, targets in fused.items()]
    register_checkpoint_conversion_mapping(name, parts, overwrite=True)
    return type(name, (native,), {"__module__": __name__})


def native_config(entry: LanguageEntry, fields: Mapping[str, Any]) -> PretrainedConfig:
    """The native configuration of a checkpoint whose own configuration class lives in remote code.

    Fields of the same name are taken over, ``entry.renamed`` ones under their native name, and ``entry.settings`` win.
    Attention is bidirectional (``is_causal`` False, which native classes honour); a block-causal model gets its mask
    from the decoder.
    """
    import transformers

    cls = getattr(transformers, entry.config)
    known = {*cls().to_dict(), "head_dim"} - {"model_type", "architectures", "transformers_version", "dtype"}
    taken = {entry.renamed.get(name, name): value for name, value in fields.items() if value is not None}
    chosen = {name: value for name, value in taken.items() if name in known}
    if "rope_theta" in fields:
        turned = {name: fields[name] for name in ("partial_rotary_factor",) if name in fields}
        chosen["rope_parameters"] = {"rope_type": "default", "rope_theta": float(fields["rope_theta"]), **turned}
    config = cls(**{**chosen, **entry.settings})
    config.is_causal = False
    config.diffusion = entry.diffusion
    return config
