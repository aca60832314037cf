"""Curvature products of a module and its loss at one point."""
