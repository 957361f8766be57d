"""Several runs that belong together: cells of a sweep and branches, what they share, and their labels.

In: a guided MODEL and a list of cells; out: one latent with a label for each picture. Imports guidance and schedules.
"""
