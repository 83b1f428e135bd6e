"""Tensor kernels: a torch reference of each, which is also the CPU path, and Triton for CUDA and HIP tensors.

=========================== ==========================================================================================
:func:`gather_norm`           G: chosen rows, LayerNorm or RMSNorm, scale and shift
:func:`scatter_update`        S: fresh rows into the cache, gate * cache onto the stream
:func:`scatter_gather_norm`   F: S, and G of the next sub-layer, in one pass
:func:`project_epilogue`      P: bias, norm and RoPE of q and k; K and V into the cache
:func:`accumulate`            A: gate * cache of several modules onto the stream in one pass
:func:`predict_heterogeneous` H: WorldCache's prediction by groups of tokens
:func:`merge_attention`       M: attention over two key sets, by log-sum-exp
=========================== ==========================================================================================

They are for inference: nothing here has a gradient. Written buffers are given, or new; inputs are never written.
"""

from .accumulate import accumulate
from .combine import combine, extrapolate
from .dispatch import counting
from .gather_norm import gather_norm
from .gram import gram
from .index import ascending, check_index, checked, inverse
from .merge_attention import merge_attention
from .predict_heterogeneous import predict_heterogeneous
from .project_epilogue import project_epilogue
from .scatter_gather_norm import scatter_gather_norm
from .scatter_update import scatter_update

__all__ = [
    "accumulate",
    "ascending",
    "check_index",
    "checked",
    "combine",
    "counting",
    "extrapolate",
    "gather_norm",
    "gram",
    "inverse",
    "merge_attention",
    "predict_heterogeneous",
    "project_epilogue",
    "scatter_gather_norm",
    "scatter_update",
]
