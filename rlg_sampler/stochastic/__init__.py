"""The step with noise that RL training explores with, shared by the sampler and by training.

In: latents, a prediction and two noise levels; out: the Gaussian of the next latents. Imports no other room.
"""
