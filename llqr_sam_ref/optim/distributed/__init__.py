"""Ranks of a process group, and parameters that are sharded over them. Private."""

__all__: list[str] = []
