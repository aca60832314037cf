"""The learned preconditioner U: its blocks, how it is refitted, saved and reported. Private but for its report."""

from llqr_sam_ref.optim.preconditioner.report import BlockReport

__all__ = ["BlockReport"]
