"""Methods against one reference, seed by seed, with a correction for how many comparisons there are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import ttest_rel, wilcoxon


@dataclass(frozen=True)
class Comparison:
    """Losses of a method and of the reference with the same seeds.

    Attributes:
        ratio: geometric mean of method over reference; infinite or 0 where one of them diverged.
        t: p-value of the paired t-test on the logarithms; None where a run diverged or the pairs do not differ.
        wilcoxon: p-value of the signed-rank test on the logarithms; a run that diverged is worse than all others.
    """

    ratio: float
    t: float | None
    wilcoxon: float | None


def paired(method: Sequence[float], reference: Sequence[float]) -> Comparison:
    """Compare losses of the same seeds.

    Args:
        method: a positive number per seed; infinite where the run diverged.
        reference: the same seeds.

    Returns:
        The comparison, not corrected.

    Raises:
        ValueError: there are not as many of the one as of the other.
    """
    if len(method) != len(reference):
        raise ValueError(f"{len(method)} losses and {len(reference)} of the reference; pass the same seeds.")
    a, b = (np.log(np.asarray(losses, dtype=float)) for losses in (method, reference))
    finite = np.isfinite(a) & np.isfinite(b)
    largest = max((float(np.abs(x[np.isfinite(x)]).max(initial=0.0)) for x in (a, b)), default=0.0)
    beyond = 1.0 + 2.0 * largest  # a logarithm that is further from all others than they are from each other
    a, b = (np.where(np.isfinite(x), x, beyond) for x in (a, b))
    difference = a - b
    if not difference.any():
        return Comparison(1.0, None, None)
    signed = float(wilcoxon(difference).pvalue) if len(difference) > 1 else None
    if finite.all():
        varies = len(difference) > 1 and float(np.ptp(difference)) > 0
        return Comparison(
            math.exp(float(difference.mean())), float(ttest_rel(a, b).pvalue) if varies else None, signed
        )
    worse = float(difference[~finite].sum())
    return Comparison(math.inf if worse > 0 else 0.0 if worse < 0 else 1.0, None, signed)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction: the k-th smallest of n times n - k + 1, not smaller than those before it, at most 1.

    Args:
        p_values: of all comparisons that are looked at together.

    Returns:
        The corrected ones in the same order; those below 0.05 are wrong altogether with that probability at most.

    Source: Holm 1979, A simple sequentially rejective multiple test procedure.
    """
    corrected = [0.0] * len(p_values)
    so_far = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        so_far = max(so_far, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = so_far
    return corrected


def one_rate(best: Sequence[float]) -> tuple[float, float]:
    """One learning rate for several tasks.

    Args:
        best: the best learning rate of each task.

    Returns:
        The rate whose largest factor to any of them is smallest, and that factor.
    """
    low, high = min(best), max(best)
    return math.sqrt(low * high), math.sqrt(high / low)
