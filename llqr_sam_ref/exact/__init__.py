"""Exact, dense, float64 NumPy: what the book derives, in the book's letters."""
