"""From options to the arguments of a pipeline's own ``__call__``, checked before anything heavy happens."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import ConfigError, ScheduleFileError, unknown
from ..zoo import ZooEntry, is_language_model, list_language_models, list_models
from .frames import Clip, as_frames

CLIPS = "clips.safetensors"
DEFAULT_CLIP = 13
MOST = 100_000  # steps, pixels of a side, frames: a larger number is a slip of the hand
# Names that pipelines give to one and the same option, in the order in which they are looked for.
_ALIASES = {
    "guidance": ("guidance_scale", "true_cfg_scale"),
    "frames": ("num_frames", "video_length"),
    "steps": ("num_inference_steps",),
}


@dataclass(frozen=True)
class Request:
    """What to sample; None leaves a field to the model. Sizes are in pixels, ``frames`` in video frames;
    ``clip`` is the number of the recorded clip whose first frames a world model starts from.

    Raises:
        ConfigError: a number is out of range, or ``image`` is not a picture.
    """

    prompt: str | None = None
    negative_prompt: str | None = None
    actions: str | None = None
    image: Path | None = None
    clip: int | None = None
    steps: int | None = None
    seed: int = 0
    guidance: float | None = None
    height: int | None = None
    width: int | None = None
    frames: int | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "height", "width", "frames"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= MOST:
                raise ConfigError(f"{name}: {value} is out of range, must be a whole number from 1 to {MOST}")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed: {self.seed} is out of range, must be a whole number from 0 to 2^63 - 1")
        if self.clip is not None and self.clip < 0:
            raise ConfigError(f"clip: {self.clip} is out of range, must be a whole number >= 0")
        if self.guidance is not None and not 0 <= self.guidance < float("inf"):
            raise ConfigError(f"guidance: {self.guidance} is out of range, must be a finite number >= 0")
        if self.actions is not None:
            read_actions(self.actions)
        if self.image is not None:
            open_image(self.image)

    def options(self) -> dict[str, Any]:
        """The fields that were given, without the seed."""
        return {k: v for k, v in vars(self).items() if v is not None and k != "seed"}


@dataclass(frozen=True)
class Call:
    """Arguments of one pipeline call, and what is known about the sample besides.

    Attributes:
        arguments: keywords of ``pipe.__call__``, without the generator.
        about: the request in a few words, for captions.
        start: the frame that was given (a clip of one frame), or None.
        truth: the frames that really followed, or None.
    """

    arguments: dict[str, Any]
    about: str = ""
    start: Clip | None = None
    truth: Clip | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def steps(self) -> int:
        return self.arguments["num_inference_steps"]


def read_actions(text: str) -> list[int]:
    """Action indices of an action string; raises ConfigError where it does not parse."""
    from ..zoo.world import parse_actions

    try:
        return parse_actions(text)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def open_image(path: Path) -> Image.Image:
    """An RGB picture; raises ConfigError where it cannot be read."""
    try:
        return Image.open(path).convert("RGB")
    except OSError as error:
        reason = error.strerror or "not a picture"
        raise ConfigError(f"image: '{path}' cannot be read ({reason}), must be a picture file") from error


def build_call(pipe: Any, request: Request, entry: ZooEntry | None, folder: Path) -> Call:
    """Fit a request to a pipeline.

    Args:
        pipe: a diffusers pipeline, or the class of one; its ``__call__`` says which options it takes.
        entry: what the zoo knows about the model: defaults for whatever the request leaves open.
        folder: the model's folder; a world model's own start frames lie there.

    Raises:
        ConfigError: an option that the pipeline does not take, or one that it needs and did not get.
    """
    known = inspect.signature(pipe.__call__).parameters
    arguments = _defaults(entry, known)
    options = request.options()
    world = "actions" in known and "depth" in known
    if world:
        options.pop("clip", None)
    for name in options:
        _place(arguments, known, name, options[name], _class_of(pipe))
    arguments.setdefault("num_inference_steps", getattr(known.get("num_inference_steps"), "default", 50))
    if "output_type" in known:
        arguments["output_type"] = "np"
    if "image" in arguments:
        arguments["image"] = open_image(arguments["image"])
    if world:
        return _world_call(arguments, request, folder)
    return _prompted_call(pipe, arguments, known, request, entry)


def _class_of(pipe: Any) -> str:
    return pipe.__name__ if isinstance(pipe, type) else type(pipe).__name__


def _defaults(entry: ZooEntry | None, known: Mapping[str, Any]) -> dict[str, Any]:
    if entry is None:
        return {}
    values = {name: getattr(entry, name) for name in ("height", "width", "num_frames", "num_inference_steps")}
    if entry.guidance_scale is not None:
        values["guidance_scale"] = entry.guidance_scale
    return {k: v for k, v in {**values, **entry.call}.items() if k in known}


def _place(arguments: dict[str, Any], known: Mapping[str, Any], name: str, value: Any, pipeline: str) -> None:
    if name == "prompt" and "prompt" not in known and "class_labels" in known:
        arguments["class_labels"] = value
        return
    for alias in _ALIASES.get(name, (name,)):
        if alias in known:
            arguments[alias] = value
            return
    takes = [n for n in ("prompt", "actions", "image", "height", "width") if n in known]
    raise ConfigError(f"{name}: {value!r} cannot be used, {pipeline} takes no {name} (it takes {', '.join(takes)})")


def _prompted_call(
    pipe: Any, arguments: dict[str, Any], known: Mapping[str, Any], request: Request, entry: ZooEntry | None
) -> Call:
    pipeline = _class_of(pipe)
    notes: list[str] = []
    prompt = request.prompt
    if entry is not None and entry.name == "tiny-wan":
        prompt, notes = _motion(prompt)
        arguments["prompt"] = prompt
    if "class_labels" in known:
        if prompt is None and "class_labels" in arguments:
            prompt = str(*arguments["class_labels"])  # the zoo's default
        prompt, number = _class_label(prompt, getattr(pipe, "labels", {}))
        arguments["class_labels"] = [number]
    elif prompt is None and "prompt" in known:
        raise ConfigError(f"prompt: none given, {pipeline} needs one, e.g. --prompt 'a cat surfing'")
    if request.image is None and "image" in known and known["image"].default in (inspect.Parameter.empty,):
        raise ConfigError(f"image: none given, {pipeline} needs a start picture: --image FILE")
    return Call(arguments, f'"{prompt}"' if prompt else "", notes=notes)


def _motion(prompt: str | None) -> tuple[str, list[str]]:
    """tiny-wan's prompt, and a note where it holds words that the model has never seen."""
    from ..zoo.wan import MOTIONS

    if prompt is None:
        return next(iter(MOTIONS)), []
    words = {w for variants in MOTIONS.values() for variant in variants for w in variant.split()}
    strange = [w for w in prompt.lower().split() if w not in words]
    if not strange:
        return prompt, []
    return prompt, [f"tiny-wan does not know the word '{strange[0]}'; it knows: {', '.join(MOTIONS)}"]


def _class_label(text: str | None, labels: Mapping[str, int]) -> tuple[str, int]:
    """What to call a class, and its number; where the pipeline names its classes, name or number will do."""
    if labels and text is not None:
        names = {str(number): name for name, number in labels.items()} | {name.lower(): name for name in labels}
        if text.lower() in names:
            return names[text.lower()], labels[names[text.lower()]]
        few = dict.fromkeys([*difflib.get_close_matches(text, labels), *labels])  # ImageNet's would fill the screen
        raise ConfigError(f"prompt: {unknown('class', text, list(few)[:20])}")
    if text is None or not text.isdigit():
        got = "none given" if text is None else f"{text!r} is not a class"
        raise ConfigError(f"prompt: {got}, must be a class number, e.g. --prompt 207")
    return text, int(text)


def _world_call(arguments: dict[str, Any], request: Request, folder: Path) -> Call:
    if request.image is not None:
        actions = request.actions or "F8L8R8"
        start = Clip(as_frames(arguments["image"]))
        return Call({**arguments, "actions": actions}, f"actions {actions} · from {request.image.name}", start)
    number = DEFAULT_CLIP if request.clip is None else request.clip
    clip = _recorded(folder, number)
    recorded = _spell(clip["actions"])
    actions = request.actions or recorded
    asked = read_actions(actions)
    same = list(clip["actions"][: len(asked)]) == asked
    arguments |= {"image": clip["context_rgb"], "depth": clip["context_depth"], "actions": actions}
    start = _clip(clip["context_rgb"][-1:], clip["context_depth"][-1:])
    truth = _clip(clip["rgb"][: len(asked)], clip["depth"][: len(asked)]) if same else None
    return Call(arguments, f"actions {actions} · from recorded clip {number}", start, truth)


def _clip(rgb: np.ndarray, depth: np.ndarray) -> Clip:
    return Clip(as_frames(rgb), as_frames(depth, grey=True))


def _recorded(folder: Path, number: int) -> dict[str, np.ndarray]:
    """One of the real clips that lie beside a world model's weights, as uint8 arrays."""
    from safetensors.numpy import load_file

    path = folder / CLIPS
    if not path.is_file():
        raise ConfigError(f"image: none given and '{path.name}' is not beside the weights, must be a start picture")
    clips = load_file(path)
    last = len(clips["actions"]) - 1
    if number > last:
        raise ConfigError(f"clip: {number} is out of range, must be a whole number from 0 to {last}")
    return {name: values[number] for name, values in clips.items()}


def _spell(actions: np.ndarray) -> str:
    """Action indices as a string with counts."""
    from ..zoo.world import ACTIONS

    runs: list[list[Any]] = []
    for index in actions:
        letter = ACTIONS[int(index)]
        if runs and runs[-1][0] == letter:
            runs[-1][1] += 1
        else:
            runs.append([letter, 1])
    return "".join(f"{letter}{count if count > 1 else ''}" for letter, count in runs)


@contextmanager
def refusals_of(pipe: Any) -> Iterator[None]:
    """Within, a pipeline that is called answers ConfigError to sizes and texts that it cannot take, not ValueError."""
    try:
        yield
    except (ConfigError, ScheduleFileError):
        raise
    except ValueError as error:
        raise ConfigError(f"{type(pipe).__name__}: {error}") from error


def short_name(model: str) -> str:
    """The last part of a folder or hub id, usable as a file name."""
    return Path(model).resolve().name if Path(model).is_dir() else model.rpartition("/")[2]


def check_model(name: str) -> ZooEntry | None:
    """The zoo's entry, or None for a folder or hub id; raises ConfigError for a name that can be neither."""
    models = list_models()
    if is_language_model(name):
        raise ConfigError(
            f"model: {name} is a language model, which this command does not run: diffcache sample and report do"
        )
    if name not in models and not (name and Path(name).is_dir()) and not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise ConfigError(
            f"{unknown('model', name, [*models, *list_language_models()])}; or a folder, or a hub id (owner/name)"
        )
    return models.get(name)


def example_command(entry: ZooEntry) -> str:
    """A command that samples a model of the zoo."""
    asks = {
        "world": " --actions F8L8R8",
        "text-to-video": " --prompt 'turns left'" if entry.embedded else " --prompt 'a cat surfing'",
        "image-to-video": " --prompt 'a cat surfing' --image cat.png",
        "text-to-image": " --prompt 'a cat surfing'",
        "class-to-image": " --prompt animals" if entry.embedded else " --prompt 207",
    }
    suffix = "png" if entry.num_frames == 1 else "gif" if entry.embedded else "mp4"
    device = "" if entry.embedded else " --device cuda"
    return f"diffcache sample --model {entry.name}{asks.get(entry.task, '')}{device} --out out/{entry.name}.{suffix}"
