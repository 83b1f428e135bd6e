"""Diffusers' pipelines of diffusion language models: their own loop, with forwards that compute only the block."""

from .attaching import PipelineHandle, attach_pipeline, listening

__all__ = ["PipelineHandle", "attach_pipeline", "listening"]
