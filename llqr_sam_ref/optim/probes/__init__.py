"""The gradients that teach U."""
