"""What an iteration of each published method does: pictures and their rewards in, gradients of the LoRA out.

`settings` holds what a method can be asked, `presets` the numbers of the authors, and a module for each kind of method
its learner. Imports `policy`, and the task, the workers and the random streams of a run.
"""
