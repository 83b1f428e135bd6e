"""Laws of the Triton kernels, run by ``test_kernels_triton.py`` in processes of their own with TRITON_INTERPRET=1.

The files are not named ``test_``: the variable must be set before a kernel is imported, and compiled kernels must not
be interpreted.
"""
