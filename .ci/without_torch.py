"""What `pip install llqr-sam-ref` gives where there is no torch: the exact layer, and a word about the rest.

python .ci/without_torch.py    # in an environment that has the package and no torch
"""

from collections.abc import Callable
from importlib import import_module

import numpy as np

import llqr_sam_ref
from llqr_sam_ref.exact import dynamics, landscapes


def refusal(load: Callable[[], object]) -> str:
    """What an import says that does not succeed; nothing where it does."""
    try:
        load()
    except ImportError as error:
        return str(error)
    return ""


path = dynamics.trajectory(
    dynamics.sam(eta=0.1, rho=0.1), landscapes.bowl(np.array([4.0])), np.array([1.0]), steps=100
)
assert np.allclose(np.sort(path[-2:].ravel()), [-0.025, 0.025]), path[-2:]

for free in ("ClosedForm", "InnerLoop", "LLQRConfig", "__version__"):
    assert getattr(llqr_sam_ref, free), free
needing = [
    name for name in llqr_sam_ref.__all__ if name in {"LLQR", "SAM", "Monge", "Fisher", "frozen_batch_stats"}
]
assert len(needing) == 5, needing
said = {name: refusal(lambda name=name: getattr(llqr_sam_ref, name)) for name in needing}
said |= {name: refusal(lambda name=name: import_module(f"llqr_sam_ref.{name}")) for name in ("optim", "nets")}
for name, words in said.items():
    assert words, f"{name} came without torch"
    assert "pip install 'llqr-sam-ref[torch]'" in words, f"{name}: {words}"
print(f"llqr_sam_ref {llqr_sam_ref.__version__}: exact works without torch, the rest says what brings it")
