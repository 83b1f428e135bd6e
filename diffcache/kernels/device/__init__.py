"""The Triton kernels, one module each with ``plan(*args) -> Launch`` and ``launch(*args)``; imported when first needed.

The arguments are those of the torch reference of the same name, which says what they mean. Compiled ahead of time for
sm_80, sm_90, sm_100 and gfx942, and run in Triton's interpreter; never run on a GPU yet.
"""
