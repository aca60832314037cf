"""Training from one command: data, loop, checkpoints, records, presets.

    python -m llqr_sam_ref train --preset digits-mlp --optimizer llqr-sam --out runs/first

The same from Python:

    from llqr_sam_ref.train import configured, train
    record = train(configured("digits-mlp", "llqr-sam").replace(epochs=5), "runs/first")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from llqr_sam_ref.errors import needs

if TYPE_CHECKING:
    from llqr_sam_ref.train.config import TrainConfig as TrainConfig
    from llqr_sam_ref.train.presets import configured as configured
    from llqr_sam_ref.train.run import train as train

_NAMES = {
    "TrainConfig": "llqr_sam_ref.train.config",
    "configured": "llqr_sam_ref.train.presets",
    "train": "llqr_sam_ref.train.run",
}
__all__ = list(_NAMES)


def __getattr__(name: str) -> Any:
    """Import a public name on first use.

    Returns:
        The class or function of that name.

    Raises:
        MissingPackageError: torch is not installed.
        AttributeError: there is no public name ``name``.
    """
    if name in _NAMES:
        needs("torch", "train")
        return getattr(import_module(_NAMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
