"""The learned preconditioner U: its blocks, how it is refitted, saved and reported."""
