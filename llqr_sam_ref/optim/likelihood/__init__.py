"""What a loss says of its outputs when it is a negative log-likelihood: labels to sample, a Fisher matrix.

A likelihood is a sum of independent terms, one per row of logits (``Categorical``) or one per output element
(``Bernoulli``, ``Gaussian``), each with a weight: 0 for a label that is ignored, that of its class for weighted
classes, else 1. A loss with ``reduction="mean"`` divides by the number of terms. Sampling goes by inverse distribution
functions from uniforms that the caller draws, so that one set of uniforms means the same labels at any world size and
in any implementation.

Whether a likelihood belongs to a loss is not taken on trust: on the first batch its slope is held against the gradient
of the loss at the outputs.
"""

from llqr_sam_ref.optim.likelihood.base import Likelihood, LossFn
from llqr_sam_ref.optim.likelihood.categorical import Categorical
from llqr_sam_ref.optim.likelihood.elementwise import Bernoulli, Gaussian
from llqr_sam_ref.optim.likelihood.inference import infer_likelihood

__all__ = ["Bernoulli", "Categorical", "Gaussian", "Likelihood", "LossFn", "infer_likelihood"]
