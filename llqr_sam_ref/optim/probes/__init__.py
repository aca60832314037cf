"""The gradients that teach U. Private."""

__all__: list[str] = []
