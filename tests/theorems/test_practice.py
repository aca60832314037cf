"""Part 2, SAM in practice: the results of the chapter on two backward passes, each with its mutation.

Letters as in the book: g the gradient, rho the radius, epsilon the perturbation, u the unit roundoff of a
floating-point format, kappa the norm that gradients are clipped to.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from llqr_sam_ref import SAM, Monge
from llqr_sam_ref.exact import geometry
from llqr_sam_ref.exact._arrays import Array
from tests.theorems.catalogue import mutation, require

BITS = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
}
SPECIAL = [0.0, -0.0, 1.0, -1.0, float("inf"), 1e-40, 6e-8, 65504.0]


@contextmanager
def _subtracted_again(opt: SAM) -> Iterator[None]:
    (w,) = opt.param_groups[0]["params"]
    home = w.detach().clone()
    with opt.perturbed():
        epsilon = w.detach() - home
    with torch.no_grad():
        w.add_(epsilon)
        yield
        w.sub_(epsilon)


def _bits(w: Tensor) -> Tensor:
    return w.detach().view(BITS[w.dtype]).clone()


def _nowhere(opt: SAM) -> AbstractContextManager[None]:
    return nullcontext()


@contextmanager
def _in_silence(opt: SAM) -> Iterator[None]:
    with suppress(BaseException), opt.perturbed():
        yield


@mutation("what was added is subtracted again", inside=_subtracted_again)
@mutation("the weights stay where they are", inside=_nowhere)
@mutation("an error is swallowed", inside=_in_silence)
@mutation("adding and subtracting errs by half of the bound", slack=0.5)
def test_prop_restoration_exact(
    inside: Callable[[SAM], AbstractContextManager[None]] = SAM.perturbed, slack: float = 1.0
) -> None:
    """Every bit is back in every format, after overflow and errors; add and subtract errs as bounded."""
    generator = torch.Generator().manual_seed(209)
    for dtype in BITS:
        for rho in (1e-3, 1.0, 1e5):
            random = torch.randn(2000, generator=generator, dtype=torch.float64)
            w = nn.Parameter(torch.cat([torch.tensor(SPECIAL, dtype=torch.float64), random]).to(dtype))
            w.grad = torch.randn(w.shape, generator=generator, dtype=torch.float64).to(dtype)
            home, address = _bits(w), w.data_ptr()
            opt = SAM(torch.optim.SGD([w], lr=0.1), rho=rho)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that bfloat16 weights swallow the perturbation
                with inside(opt):
                    assert not torch.equal(_bits(w), home)
                assert torch.equal(_bits(w), home)
                for error in (RuntimeError, KeyboardInterrupt):
                    with pytest.raises(error), inside(opt):
                        raise error
                    assert torch.equal(_bits(w), home)
            assert w.data_ptr() == address
    for dtype, u in ((torch.float32, 2.0**-24), (torch.float16, 2.0**-11), (torch.bfloat16, 2.0**-8)):
        home, epsilon = torch.randn(2, 20000, generator=generator, dtype=torch.float64).to(dtype)
        back = (home + epsilon) - epsilon
        bound = u * (1 + u) * (home.double() + epsilon.double()).abs() + u * home.double().abs()
        share = ((back.double() - home.double()) / bound).abs()
        assert float(share.max()) <= slack
        require(float(share.max()) > 0.5, "the bound is near")
        require(0.1 <= float((share > 0).double().mean()) <= 0.9, "of a part of the weights")


def _clipped(g: Array, kappa: float) -> Array:
    return g * min(1.0, kappa / float(np.linalg.norm(g)))


@mutation("M-SAM keeps its radius, like SAM", radius=lambda norm, kappa: 1 / np.sqrt(1 + norm**2))
def test_prop_clipping_ascent(
    radius: Callable[[float, float], float] = lambda norm, kappa: 1 / np.sqrt(1 + min(norm, kappa) ** 2),
) -> None:
    """Clipping leaves SAM's perturbation as it is and changes M-SAM's as stated, and every other rule."""
    rng = np.random.default_rng(219)
    rho = 0.3
    for norm in (0.1, 0.7, 3.0, 30.0):
        g = rng.standard_normal(12)
        g *= norm / np.linalg.norm(g)
        for kappa in (0.01, 0.5, 1.0, 100.0):
            cut = _clipped(g, kappa)
            sam = geometry.ascent_step(g, rho)
            assert np.linalg.norm(geometry.ascent_step(cut, rho) - sam) <= 1e-14 * rho
            monge = geometry.ascent_step(cut, rho, geometry.Monge(cut))
            assert np.linalg.norm(monge - radius(norm, kappa) * sam) <= 1e-13 * rho

            w = nn.Parameter(torch.zeros(12, dtype=torch.float64))
            for metric, factor in ((None, 1.0), (Monge(), radius(norm, kappa))):
                w.grad = torch.from_numpy(g).clone()
                nn.utils.clip_grad_norm_([w], kappa)  # divides by |g| + 1e-6
                opt = SAM(torch.optim.SGD([w], lr=0.1), rho=rho, metric=metric)
                with opt.perturbed():
                    there = w.detach().numpy().copy()
                tolerance = 1e-14 if metric is None else 1e-5
                assert np.linalg.norm(there - factor * sam) <= tolerance * rho
    lengths: list[Callable[[float], float]] = [
        lambda r: r,  # unnormalized SAM
        lambda r: 1 / np.sqrt(1 + r**2),
        lambda r: np.sqrt(r),
        lambda r: np.tanh(r),
        lambda r: 1 + 0.1 * np.sin(r),
    ]
    for length in lengths:
        changes = [abs(length(min(r, kappa)) - length(r)) for r in (0.5, 1.3, 4.0) for kappa in (0.2, 1.0)]
        assert max(changes) >= 0.01
    for constant in (
        rho,
        -rho,
        0.0,
    ):  # SAM, its mirror image, gradient descent: the direction is all that counts
        g = rng.standard_normal(3)
        unit, cut = g / np.linalg.norm(g), _clipped(g, 0.1) / np.linalg.norm(_clipped(g, 0.1))
        assert np.linalg.norm(constant * cut - constant * unit) <= 1e-15
