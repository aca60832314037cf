"""The families of matrices a learned preconditioner is chosen from."""
