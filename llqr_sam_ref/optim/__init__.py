"""Optimizers for PyTorch: SAM under any metric, and LLQR, as torch.optim citizens.

Public are the names here and those of ``metric`` (to write a metric), ``likelihood`` (to say which labels),
``structures`` (to shape U) and ``curvature`` (to take products). What else lies in this package serves them and may
change.
"""

from llqr_sam_ref.errors import needs

needs("torch", "torch")

from llqr_sam_ref.config import ClosedForm, InnerLoop, LLQRConfig
from llqr_sam_ref.optim.batchnorm import frozen_batch_stats
from llqr_sam_ref.optim.budget import within_overhead
from llqr_sam_ref.optim.llqr import LLQR
from llqr_sam_ref.optim.metric import Adaptive, Euclidean, Fisher, Metric, Monge, Preconditioned
from llqr_sam_ref.optim.sam import SAM

__all__ = [
    "LLQR",
    "SAM",
    "Adaptive",
    "ClosedForm",
    "Euclidean",
    "Fisher",
    "InnerLoop",
    "LLQRConfig",
    "Metric",
    "Monge",
    "Preconditioned",
    "frozen_batch_stats",
    "within_overhead",
]
