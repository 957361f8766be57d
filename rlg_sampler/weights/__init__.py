"""From a LoRA file, or from the patches of two MODELs, to what is added to each module of the base.

In: files and MODELs; out: LoRA patches, a checked `ModelPair`, and `Deltas` that add a tuned model's part to its own
rows. Imports the messages alone.
"""
