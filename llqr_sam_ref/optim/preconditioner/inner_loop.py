"""The inner loop of a refit: heavy-ball descent on the relaxed objective, the probe gradient X held fixed.

    z = (G + mu I) s - g                                     the caller's curvature product
    d = pull-back of z to an array, clipped to a norm        each array on its own
    v <- beta v + d,   array <- array - lr v

For a Kronecker block S = Psi X Phi^T the gradient of Psi is Y X^T with Y = Z Phi, so the larger factor is
never touched while the loop runs: Psi_t X = Psi_0 X + W_t (X^T X), where W obeys the same recursion driven by
Y, and |Y X^T|^2 = tr(Y^T Y X^T X). The loop then costs O(m n^2) per step instead of O(m^2 n), and the factor is
written once, at the end. Nothing is read back to the host.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llqr_sam_ref.config import InnerLoop
from llqr_sam_ref.errors import check_number
from llqr_sam_ref.optim.curvature.functional import Vector
from llqr_sam_ref.optim.preconditioner.stack import Own, Stack
from llqr_sam_ref.optim.structures import Factors, Structure

SIGN_FLOOR = 1e-8


def refit_inner_loop(
    stacks: list[Stack],
    probes: Vector,
    product: Callable[[Vector], Vector],
    solver: InnerLoop,
    own: Own,
) -> None:
    """Descend on the relaxed objective from the current U (or the identity), then average.

    Args:
        stacks: what is learned; changed in place.
        probes: g_j, the same on all ranks, stacked along the first axis of each parameter's tensor.
        product: v -> G v on the learned parameters, the same on all ranks.
        solver: its steps, clip, average and sign guard.
        own: where counters are saved.

    Source: LLQR, arXiv 2605.04230; the book, thm-relaxed-gradients and, for the average, thm-ema-relaxed-step.
    """
    k = len(next(iter(probes.values())))
    loops = []
    for stack in stacks:
        start = stack.arrays
        if not solver.warm_start:
            start = stack.structure.identity((len(stack.blocks),), stack.dtype, stack.device)
        X = stack.gather(probes, (k,))
        make, probe = (inner_loop, X[:, 0]) if k == 1 else (AveragedLoop, X)
        loops.append(make(stack.structure, start, probe, momentum=solver.momentum, clip=solver.clip))
    for _ in range(solver.steps):
        S = [loop.apply() for loop in loops]
        GS = _products(stacks, S, product, k)
        for loop, part, curved in zip(loops, S, GS, strict=True):
            loop.step(curved + solver.damping * part - loop.X, solver.lr)
    for stack, loop in zip(stacks, loops, strict=True):
        arrays = loop.arrays(solver.ema)
        if not solver.warm_start:  # the average is with U, not with where the loop began
            arrays = {n: torch.lerp(a, stack.kept[n], solver.ema) for n, a in loop.arrays().items()}
        if stack.guards_signs and not solver.allow_inversion:
            arrays = stack.structure.project(arrays, SIGN_FLOOR)
        for name, array in arrays.items():
            stack.kept[name].copy_(array)
        stack.clip_hits = loop.clip_hits
        stack.counted(stack.refits + 1, 0, own)


def _products(
    stacks: list[Stack], S: list[Tensor], product: Callable[[Vector], Vector], k: int
) -> list[Tensor]:
    """G S, stack by stack; S may have k probes along its second axis."""
    products = []
    for j in range(k):
        s: Vector = {}
        for stack, part in zip(stacks, S, strict=True):
            s.update(stack.scatter(part if k == 1 else part[:, j]))
        curved = product(s)
        products.append([stack.gather(curved) for stack in stacks])
    return products[0] if k == 1 else [torch.stack(parts, 1) for parts in zip(*products, strict=True)]


class Loop(ABC):
    """One refit of one block, or of a stack of equal blocks (first axis).

    Args:
        structure: of the blocks.
        arrays: stored arrays at the start; they are not changed.
        X: the probe gradient, fixed.
        momentum: beta, heavy ball.
        clip: largest Frobenius norm of an array's gradient; None for no clip.
    """

    probe_axes: ClassVar[int] = 0
    """Axes of X between those of the stack and those of the block."""

    def __init__(
        self,
        structure: Structure,
        arrays: Factors,
        X: Tensor,
        momentum: float = 0.9,
        clip: float | None = 5.0,
    ) -> None:
        self.structure, self.start, self.X = structure, arrays, X
        self.momentum = check_number("momentum", momentum, low=0.0, high=1.0, open_high=True)
        self.clip = None if clip is None else check_number("clip", clip, low=0.0, open_low=True)
        batch = X.shape[: X.ndim - len(structure.shape) - self.probe_axes]
        self.clip_hits: dict[str, Int[Tensor, "*b"]] = {
            name: torch.zeros(batch, dtype=torch.int64, device=X.device) for name in arrays
        }
        self._begin(arrays)

    @abstractmethod
    def _begin(self, arrays: Factors) -> None:
        """Set up what the loop keeps from step to step."""

    @abstractmethod
    def apply(self) -> Float[Tensor, "*b m n"]:
        """S = U X at the current arrays."""

    @abstractmethod
    def step(self, Z: Float[Tensor, "*b m n"], lr: float) -> None:
        """One step against the pull-back of Z.

        Args:
            Z: (G + mu I) S - X at the current arrays.
            lr: eta_U.
        """

    @abstractmethod
    def arrays(self, ema: float = 0.0) -> Factors:
        """New arrays, each ema * start + (1 - ema) * current."""

    def _scale(self, name: str, squared_norm: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        """What a gradient is multiplied by: 1, or clip over its norm where the norm exceeds it (counted)."""
        if self.clip is None:
            return torch.ones_like(squared_norm)
        norm = squared_norm.clamp_min(0).sqrt()
        self.clip_hits[name] += norm > self.clip
        return self.clip / norm.clamp_min(self.clip)


class PlainLoop(Loop):
    """The loop as it is written, for any structure.

    Source: LLQR, arXiv 2605.04230; the book, thm-relaxed-gradients.
    """

    def _begin(self, arrays: Factors) -> None:
        self._current = {name: array.clone() for name, array in arrays.items()}
        self._velocity = {name: torch.zeros_like(array) for name, array in arrays.items()}

    def apply(self) -> Float[Tensor, "*b m n"]:
        """S = U X."""
        return self.structure.apply(self._current, self.X)

    def step(self, Z: Float[Tensor, "*b m n"], lr: float) -> None:
        """Pull back, clip, heavy ball.

        Args:
            Z: (G + mu I) S - X.
            lr: eta_U.
        """
        self._descend(self.structure.pullback(self._current, self.X, Z), lr)

    def _descend(self, gradients: Factors, lr: float) -> None:
        for name, gradient in gradients.items():
            gradient = _finite(gradient)
            batch = self.clip_hits[name].ndim
            scale = self._scale(name, _inner(gradient, gradient, batch))
            self._velocity[name].mul_(self.momentum).addcmul_(gradient, _over(scale, gradient))
            self._current[name].sub_(self._velocity[name], alpha=lr)

    def arrays(self, ema: float = 0.0) -> Factors:
        """New arrays, each ema * start + (1 - ema) * current."""
        return {name: torch.lerp(self._current[name], start, ema) for name, start in self.start.items()}


class AveragedLoop(PlainLoop):
    """The loop on the mean of the objective over k probes, which X, S and Z have along their second axis.

    Args:
        structure: of the blocks.
        arrays: stored arrays at the start, blocks along the first axis.
        X: the probe gradients (b, k, ...).
        momentum: beta, heavy ball.
        clip: largest Frobenius norm of an array's gradient, after averaging; None for no clip.

    Source: the book, thm-multi-probe-optimum.
    """

    probe_axes = 1

    def apply(self) -> Float[Tensor, "b k *shape"]:
        """S = U X for every probe."""
        return self.structure.apply(self._for_each_probe(), self.X)

    def step(self, Z: Float[Tensor, "b k *shape"], lr: float) -> None:
        """Pull back, average over the probes, clip, heavy ball.

        Args:
            Z: (G + mu I) S - X for every probe.
            lr: eta_U.
        """
        gradients = self.structure.pullback(self._for_each_probe(), self.X, Z)
        self._descend({name: gradient.mean(1) for name, gradient in gradients.items()}, lr)

    def _for_each_probe(self) -> Factors:
        return {name: array.unsqueeze(1) for name, array in self._current.items()}


class KroneckerLoop(Loop):
    """The same loop for S = Psi X Phi^T that never touches the larger factor.

    Inside, the larger side is on the left: S = A X B^T, or its transpose S^T = A X^T B^T.

    Source: the book, thm-kronecker-inner-loop.
    """

    def _begin(self, arrays: Factors) -> None:
        X, sides = self.X, self.structure.product_sides()
        if sides is None:
            raise TypeError(f"structure={self.structure} is no product A X B^T; use PlainLoop.")
        self._turned = X.shape[-1] > X.shape[-2]
        (self._A, self._left), (self._B, self._right) = sides[::-1] if self._turned else sides
        self._x = X.mT if self._turned else X
        blocks = self._left.split(self._x)
        self._gram = blocks.mT @ blocks  # X^T X, for each diagonal block of A
        self._product = self._left.left(arrays[self._A], self._x)  # A X, kept current
        self._B_now = arrays[self._B].clone() if self._right.count else None
        self._B_velocity = None if self._B_now is None else torch.zeros_like(self._B_now)
        self._W, self._velocity = torch.zeros_like(blocks), torch.zeros_like(blocks)
        self._product_velocity = torch.zeros_like(self._product)

    def apply(self) -> Float[Tensor, "*b m n"]:
        """S = Psi X Phi^T."""
        S = self._right.right(self._product, self._B_now)
        return S.mT if self._turned else S

    def step(self, Z: Float[Tensor, "*b m n"], lr: float) -> None:
        """Pull back, clip, heavy ball, on B and on the low-rank change of A.

        Args:
            Z: (G + mu I) S - X.
            lr: eta_U.
        """
        z = Z.mT if self._turned else Z
        batch = z.ndim - 2
        Y = self._right.right_transposed(z, self._B_now)
        Y = self._left.split(_finite(Y.clone() if self._B_now is None else Y))  # Y may be Z itself
        Y_gram = Y @ self._gram
        scale = self._scale(self._A, _inner(Y, Y_gram, batch))
        if self._B_now is not None and self._B_velocity is not None:
            dB = _finite(self._right.outer(z.mT, self._product.mT))
            own_scale = self._scale(self._B, _inner(dB, dB, batch))
            self._B_velocity.mul_(self.momentum).addcmul_(dB, _over(own_scale, dB))
            self._B_now.sub_(self._B_velocity, alpha=lr)
        self._velocity.mul_(self.momentum).addcmul_(Y, _over(scale, Y))
        self._W.sub_(self._velocity, alpha=lr)
        change = Y_gram.flatten(-3, -2)
        self._product_velocity.mul_(self.momentum).addcmul_(change, _over(scale, change))
        self._product.sub_(self._product_velocity, alpha=lr)

    def arrays(self, ema: float = 0.0) -> Factors:
        """New arrays, each ema * start + (1 - ema) * current; the large one is A_0 + (1 - ema) W X^T."""
        change = self._left.outer(self._W.flatten(-3, -2), self._x)
        arrays = {self._A: self.start[self._A] + (1 - ema) * change}
        if self._B_now is not None:
            arrays[self._B] = torch.lerp(self._B_now, self.start[self._B], ema)
        return {name: arrays[name] for name in self.start}


def inner_loop(
    structure: Structure, arrays: Factors, X: Tensor, *, momentum: float = 0.9, clip: float | None = 5.0
) -> Loop:
    """The cheaper of the two loops; they agree to rounding.

    Args:
        structure: of the blocks.
        arrays: stored arrays at the start.
        X: the probe gradient.
        momentum: beta.
        clip: largest norm of an array's gradient, or None.

    Returns:
        A loop ready for its first ``apply``.
    """
    sides = structure.product_sides()
    if sides is not None:
        m, n = structure.shape
        _, large = sides[0] if m >= n else sides[1]
        if large.width >= min(m, n):
            return KroneckerLoop(structure, arrays, X, momentum, clip)
    return PlainLoop(structure, arrays, X, momentum, clip)


def _over(scale: Tensor, array: Tensor) -> Tensor:
    """One number per block, shaped to multiply the stack of arrays."""
    return scale.reshape(*scale.shape, *(1 for _ in range(array.ndim - scale.ndim)))


def _inner(a: Tensor, b: Tensor, batch: int) -> Tensor:
    """<a, b>, one number per block."""
    product: Tensor = torch.linalg.vecdot(a.flatten(batch), b.flatten(batch))
    return product


def _finite(gradient: Tensor) -> Tensor:
    """NaN to 0, infinities to 1 and -1, in place, as the published loop does."""
    return torch.nan_to_num_(gradient, nan=0.0, posinf=1.0, neginf=-1.0)
