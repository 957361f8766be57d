"""A plan of models, prompts, seeds and scales → pictures, scores and a summary, on one machine or many.

One process reads the plan and writes all files; workers, local or on a Ray cluster, only compute. Nothing of the host
is imported outside of the workers.
"""
