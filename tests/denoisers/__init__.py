"""Tiny random models of every transformer denoiser class that diffusers exports."""

from __future__ import annotations

from .base import Denoiser
from .flux import FLUX
from .hunyuan import HUNYUAN
from .image import IMAGE
from .joint import JOINT
from .kandinsky import KANDINSKY
from .single import SINGLE
from .sound import SOUND
from .special import SPECIAL
from .video import VIDEO
from .wan import WAN

#: class name -> how to build and call it
DENOISERS: dict[str, Denoiser] = {
    **FLUX, **IMAGE, **JOINT, **SINGLE, **VIDEO, **WAN, **HUNYUAN, **KANDINSKY, **SOUND, **SPECIAL
}  # fmt: skip
