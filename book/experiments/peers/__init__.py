"""The instrument that compares optimizers: the same budget, the same axes, the same seeds for everybody.

    python -m book.experiments.peers --out RUNS                      all tasks, all methods; hours
    python -m book.experiments.peers --out RUNS --tasks decoder vit --methods adamw muon llqr --jobs 2

What happens, in this order; each stage is a module.

1. ``search``: each method gets three axes (learning rate, decay, one parameter of its own). The search begins at the
   customary setting and walks by factors of two until the best setting has tried neighbors on all sides. A setting is
   judged by the worst of its tuning seeds, on validation examples. What is left of the budget goes to untried
   settings around the best. The budget of a task is what the method that needed most needed.
2. ``run``: the best setting of each method is trained again with fresh seeds. A seed decides the initial weights and
   the batches, and means the same for every method, so methods are compared seed by seed.
3. ``cost``: seconds of a step, all methods in one process, block by block in turn.
4. ``summary``: means and spreads, steps, gradient evaluations and seconds to a target, comparisons with a correction
   for their number, and how far one learning rate for all tasks is from each task's best.

Every finished run is a file that says what made it; the same command goes on where it was stopped. A run counts as
long as the code that it depends on says the same (``sources``).
"""
