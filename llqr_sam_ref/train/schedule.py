"""The learning rate as a function of the step: nothing to remember, nothing to save."""

from __future__ import annotations

import math
import re

from llqr_sam_ref.errors import UserError
from llqr_sam_ref.train.config import ScheduleConfig


def warmup_steps(warmup: str, steps_per_epoch: int, steps: int) -> int:
    """How many steps a warm-up lasts.

    Args:
        warmup: steps ("4000"), epochs ("5ep") or a share of the run ("5%").
        steps_per_epoch: of the data.
        steps: of the whole run.

    Returns:
        A number of steps, at most those of the run.

    Raises:
        UserError: it is none of the three.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(ep|epochs?|%)?\s*", warmup)
    if match is None or (match[2] is None and not match[1].isdigit()):
        raise UserError(f'warmup={warmup!r} is not a length; write steps "4000", epochs "5ep" or "5%".')
    amount = float(match[1])
    unit = {None: 1.0, "%": steps / 100}.get(match[2], float(steps_per_epoch))
    return min(round(amount * unit), steps)


def learning_rate(config: ScheduleConfig, lr: float, step: int, steps_per_epoch: int) -> float:
    """The learning rate of one step.

    warm-up:      lr_0 + (lr - lr_0) (t + 1)/W                         for t < W
    cosine:       lr_T + (lr - lr_T) (1 + cos(pi (t - W)/(T - W)))/2
    step:         lr factor^(number of milestones passed)
    inverse-sqrt: lr sqrt(W/(t + 1)), W at least 1
    constant:     lr

    Args:
        config: the schedule.
        lr: the largest learning rate.
        step: t, from 0.
        steps_per_epoch: of the data.

    Returns:
        The learning rate, positive before the last step of a cosine to 0 is over.

    Raises:
        UserError: the warm-up is not a length.
    """
    steps = config.epochs * steps_per_epoch
    warm = warmup_steps(config.warmup, steps_per_epoch, steps)
    if step < warm:
        return config.warmup_from + (lr - config.warmup_from) * (step + 1) / warm
    if config.schedule == "cosine":
        done = (step - warm) / max(1, steps - warm)
        return config.final_lr + (lr - config.final_lr) * (1 + math.cos(math.pi * done)) / 2
    if config.schedule == "step":
        passed = sum(step >= round(epoch * steps_per_epoch) for epoch in config.milestones)
        return lr * config.factor**passed
    if config.schedule == "inverse-sqrt":
        return lr * math.sqrt(max(1, warm) / (step + 1))
    return lr
