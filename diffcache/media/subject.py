"""What is generated from each seed: prompts, classes, or recorded clips of a world model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..zoo import ZooEntry
from .request import Call, Request, build_call


@dataclass(frozen=True)
class Subject:
    """A loaded model, and what to generate with it.

    Attributes:
        pipe: the pipeline.
        entry: what the zoo knows about it, or None.
        folder: where its files lie.
        request: options that all seeds share.
        prompts: one for each seed in turn; empty: the model's own.
    """

    pipe: Any
    entry: ZooEntry | None
    folder: Path
    request: Request
    prompts: tuple[str, ...] = ()

    def call(self, seed: int, steps: int) -> Call:
        """The call of a seed: its prompt, class or recorded clip.

        Raises:
            ConfigError: the pipeline does not take what was asked for.
        """
        what: dict[str, Any] = {"steps": steps, "seed": seed}
        prompts = self.prompts or own_prompts(self.entry, self.pipe, self.request)
        if prompts:
            what["prompt"] = prompts[seed % len(prompts)]
        elif self._recorded and self.request.clip is None and self.request.image is None:
            what["clip"] = seed % self._recorded
        return build_call(self.pipe, replace(self.request, **what), self.entry, self.folder)

    @property
    def _recorded(self) -> int:
        """Recorded clips beside the weights."""
        from safetensors import safe_open

        from .request import CLIPS

        path = self.folder / CLIPS
        if not path.is_file():
            return 0
        with safe_open(path, "np") as file:
            return file.get_slice("actions").get_shape()[0]


def own_prompts(entry: ZooEntry | None, pipe: Any, request: Request) -> tuple[str, ...]:
    """The embedded models know by themselves what they can show; others take the one prompt that was given."""
    if request.prompt is not None:
        return (request.prompt,)
    if entry is None or not entry.embedded:
        return ()
    if entry.name == "tiny-wan":
        from ..zoo.wan import MOTIONS

        return tuple(MOTIONS)
    return tuple(getattr(pipe, "labels", {})) if entry.task == "class-to-image" else ()


def read_prompts(path: Path | None) -> tuple[str, ...]:
    """The lines of a file that are not empty.

    Raises:
        ConfigError: it cannot be read, or holds none.
    """
    if path is None:
        return ()
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not text"
        raise ConfigError(
            f"prompts: '{path}' cannot be read ({why}), must be a text file, one prompt a line"
        ) from error
    if not any(lines):
        raise ConfigError(f"prompts: '{path}' holds no prompt, must be a text file, one prompt a line")
    return tuple(filter(None, lines))
