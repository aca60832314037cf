"""How sharp the loss is where a run ended: the Hessian's top eigenvalue, and SAM's rise of the loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from llqr_sam_ref.errors import check_count
from llqr_sam_ref.optim.curvature.linearization import Linearization
from llqr_sam_ref.optim.likelihood import LossFn


def lanczos(
    product: Callable[[Tensor], Tensor],
    start: Float[Tensor, "runs d"],
    iterations: int,
    tolerance: float = 0.0,
) -> tuple[Float[Tensor, " runs"], Float[Tensor, " runs"], int]:
    """The largest eigenvalue of symmetric matrices by Lanczos, every new vector made orthogonal to all before.

    Args:
        product: from one vector per matrix, shape (runs, d), to the products H v, of the same shape.
        start: a vector per matrix, not zero.
        iterations: products at most; one vector is kept for each.
        tolerance: residual over |lambda| at which it stops, when every matrix has reached it.

    Returns:
        Per matrix its largest Ritz value lambda and the residual |H v - lambda v|, within which an eigenvalue lies,
        both in float64 on the host; and the number of products taken.

    Source: Lanczos 1950; the residual is |beta_k s_k|, Parlett 1980, section 13.2.
    """
    check_count("iterations", iterations)
    basis = [start / start.norm(dim=1, keepdim=True)]
    runs, most = len(start), min(iterations, start.shape[1])
    tridiagonal = torch.zeros(runs, most, most, dtype=torch.float64)
    taken = 0
    for k in range(most):
        w = product(basis[-1])
        taken += 1
        tridiagonal[:, k, k] = (w * basis[-1]).sum(1).double().cpu()
        for _ in range(2):  # twice is enough
            for v in basis:
                w = w - (w * v).sum(1, keepdim=True) * v
        beta = w.norm(dim=1)
        ritz, vectors = torch.linalg.eigh(tridiagonal[:, :taken, :taken])
        values, residuals = ritz[:, -1], (beta.double().cpu() * vectors[:, -1, -1]).abs()
        scale = torch.maximum(ritz[:, 0].abs(), values.abs()).clamp_min(1e-30)
        done = (residuals <= tolerance * values.abs()) | (beta.double().cpu() <= 1e-7 * scale)
        if bool(done.all()) or taken == most:
            break
        tridiagonal[:, k, k + 1] = tridiagonal[:, k + 1, k] = beta.double().cpu()
        basis.append(w / beta.clamp_min(torch.finfo(beta.dtype).tiny)[:, None])
    return values, residuals, taken


def top_eigenvalue(
    product: Callable[[Tensor], Tensor],
    start: Float[Tensor, " d"],
    iterations: int = 30,
    tolerance: float = 1e-3,
) -> dict[str, float]:
    """The largest eigenvalue of one symmetric matrix, by :func:`lanczos`.

    Args:
        product: v to H v.
        start: any vector that is not zero.
        iterations: products at most.
        tolerance: residual |H v - lambda v| / |lambda| at which it stops.

    Returns:
        {"top_eigenvalue", "residual" (an eigenvalue lies within it, in units of the eigenvalue), "products"}.
    """
    values, residuals, taken = lanczos(lambda v: product(v[0])[None], start[None], iterations, tolerance)
    value, residual = float(values[0]), float(residuals[0])
    return {"top_eigenvalue": value, "residual": residual / abs(value) if value else 0.0, "products": taken}


def sharpness(
    model: nn.Module, loss_fn: LossFn, inputs: Any, targets: Tensor, rho: float, seed: int = 0
) -> dict[str, float]:
    """Both numbers on one batch, the model in evaluation mode.

    sam_sharpness = L(w + rho g/|g|) - L(w)

    Args:
        model: as trained; nothing of it changes.
        loss_fn: the training loss.
        inputs: the batch.
        targets: its labels.
        rho: radius.
        seed: of the vector Lanczos starts from.

    Returns:
        What :func:`top_eigenvalue` returns, "loss", "gradient_norm" and "sam_sharpness".

    Source: the book, chapters 7 and 9; Foret et al. 2021.
    """
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        linear = Linearization(model, loss_fn, inputs, targets)
        gradient = linear.gradient()
        sizes = {name: g.numel() for name, g in gradient.items()}
        g = torch.cat([t.flatten() for t in gradient.values()])

        def product(v: Tensor) -> Tensor:
            parts = dict(zip(sizes, torch.split(v, list(sizes.values())), strict=True))
            moved = linear.hessian({name: part.view_as(gradient[name]) for name, part in parts.items()})
            return torch.cat([moved[name].flatten() for name in sizes])

        generator = torch.Generator().manual_seed(seed)
        found = top_eigenvalue(product, torch.randn(len(g), generator=generator).to(g))
        length = g.norm()
        perturbed = {
            name: p.detach() + rho * gradient[name].to(p) / length.clamp(min=torch.finfo(g.dtype).tiny)
            for name, p in model.named_parameters()
            if name in gradient
        }
        arguments = inputs if isinstance(inputs, tuple) else (inputs,)
        with torch.no_grad():
            outputs = torch.func.functional_call(model, perturbed, arguments)
            rise = float(loss_fn(outputs, targets)) - float(linear.loss)
    finally:
        for module in training:
            module.training = True
    return {
        **found,
        "loss": float(linear.loss),
        "gradient_norm": float(length),
        "sam_sharpness": rise,
        "rho": rho,
    }
