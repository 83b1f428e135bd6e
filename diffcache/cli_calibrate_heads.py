"""``diffcache calibrate --method flashblock``: which heads of a language model must compute at which step."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cli_options import Asked
from .cli_stopping import load_torch
from .errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor


def calibrate_heads(
    asked: Asked,
    model: str,
    target: Path,
    seeds: list[int] | None,
    steps: int | None,
    settings: list[str],
    quick: bool,
    **others: Any,
) -> None:
    """Generate from held-out problems, or from the prompt that was asked, listen to every head and write the mask.

    Raises:
        ConfigError: an argument is wrong, or one of ``others``, which other calibrations have, was given.
    """
    load_torch()
    from .learn import describe, make_calibrator, write_calibration
    from .media.request import short_name
    from .media.session import hide_bars, read_device, read_dtype, read_fields
    from .media.terminal import StepProgress, console, say, summarise
    from .zoo import find_language_model, list_language_models, list_models, load_language_model

    for name, value in {**asked.content, **others}.items():
        if value is not None and name != "prompt":
            shown = str(value) if isinstance(value, Path) else value
            raise ConfigError(f"{name}: {shown!r} cannot be used, flashblock takes prompt, seeds, steps and --set")
    if model in list_models():
        known = ", ".join(list_language_models())
        raise ConfigError(f"method: flashblock is for language models, and {model} is none: {known}")
    entry = find_language_model(model)
    given = {} if entry is None else {"gen_length": entry.gen_length, "threshold": entry.threshold}
    given |= {} if steps is None else {"steps": steps}
    calibrator = make_calibrator("flashblock", **{**given, **read_fields(settings)})
    if quick and not calibrator.quick:
        say(calibrator.no_quick)
    where, dtype = read_device(asked.device), read_dtype(asked.dtype)
    hide_bars(entry)
    network, tokenizer = load_language_model(model, dtype=dtype, device=where)
    calls = [{"input_ids": ids} for ids in _prompts(tokenizer, asked.prompt, seeds or _numbers(calibrator.seeds))]
    with StepProgress(console(), "token") as progress:
        found = calibrator.measure(network, calls, progress, None)
    write_calibration(found, target)
    head = f"{short_name(model)} · flashblock · {found.steps} steps of a block"
    summarise(head, [*describe(found), ("written to", str(target))])
    over = found.expert("model").facts["over"]
    method = "flashblock" if over == "exact" else f"flashblock:{over}"
    say(f"use it: {shlex.join(['diffcache', 'sample', '--model', model, '--method', method])} --set heads={target}")


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _prompts(tokenizer: Any, prompt: str | None, numbers: list[int]) -> list[Tensor]:
    """Ids ``[1, P]`` of the prompt, or of the held-out problems with these numbers; answers are not looked at."""
    import torch

    from .zoo import load_problems

    problems = load_problems()
    far = [number for number in numbers if number >= len(problems)]
    if prompt is None and far:
        raise ConfigError(f"seeds: {far[0]} is out of range, there are {len(problems)} held-out problems")
    texts = [prompt] if prompt is not None else [problems[number].question for number in numbers]
    return [torch.tensor([tokenizer(text).input_ids]) for text in texts]
