"""Optimizers for PyTorch: SAM under any metric, as torch.optim citizens."""

from llqr_sam_ref.optim.batchnorm import frozen_batch_stats
from llqr_sam_ref.optim.metric import Adaptive, Euclidean, Fisher, Metric, Monge, Preconditioned
from llqr_sam_ref.optim.sam import SAM

__all__ = [
    "SAM",
    "Adaptive",
    "Euclidean",
    "Fisher",
    "Metric",
    "Monge",
    "Preconditioned",
    "frozen_batch_stats",
]
