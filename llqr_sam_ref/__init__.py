"""Reference implementations of SAM, Monge SAM, LLQR and LLQR+SAM.

``llqr_sam_ref.exact`` is NumPy in float64: small, dense, for reading and checking.
``llqr_sam_ref.optim`` is PyTorch: for training. Importing this package imports neither.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what type checkers and editors see; the table below is what happens
    from llqr_sam_ref.config import ClosedForm as ClosedForm
    from llqr_sam_ref.config import InnerLoop as InnerLoop
    from llqr_sam_ref.config import LLQRConfig as LLQRConfig
    from llqr_sam_ref.optim import LLQR as LLQR
    from llqr_sam_ref.optim import SAM as SAM
    from llqr_sam_ref.optim import Adaptive as Adaptive
    from llqr_sam_ref.optim import Euclidean as Euclidean
    from llqr_sam_ref.optim import Fisher as Fisher
    from llqr_sam_ref.optim import Monge as Monge
    from llqr_sam_ref.optim import Preconditioned as Preconditioned
    from llqr_sam_ref.optim import frozen_batch_stats as frozen_batch_stats
    from llqr_sam_ref.optim import within_overhead as within_overhead

__version__ = "0.1.0"

# Public PyTorch names and where they live; torch is imported when one of them is first touched.
_TORCH_NAMES: dict[str, str] = {
    "Adaptive": "llqr_sam_ref.optim.metric",
    "ClosedForm": "llqr_sam_ref.config",
    "Euclidean": "llqr_sam_ref.optim.metric",
    "Fisher": "llqr_sam_ref.optim.metric",
    "InnerLoop": "llqr_sam_ref.config",
    "LLQR": "llqr_sam_ref.optim.llqr",
    "LLQRConfig": "llqr_sam_ref.config",
    "Monge": "llqr_sam_ref.optim.metric",
    "Preconditioned": "llqr_sam_ref.optim.metric",
    "SAM": "llqr_sam_ref.optim.sam",
    "frozen_batch_stats": "llqr_sam_ref.optim.batchnorm",
    "within_overhead": "llqr_sam_ref.optim.budget",
}

__all__ = ["__version__", *_TORCH_NAMES]


def __getattr__(name: str) -> Any:
    """Import a public PyTorch name on first use (PEP 562).

    Returns:
        The class or function of that name.

    Raises:
        AttributeError: there is no public name ``name``.
    """
    if name in _TORCH_NAMES:
        return getattr(import_module(_TORCH_NAMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
