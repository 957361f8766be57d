"""Training from a plan file, on one machine or many: `python -m training PLAN.yaml`.

Run from a clone, with the parts of `evaluation` that every such program needs. What is trained, and how, is the
extension's, as the ComfyUI of the process has loaded it: a plan makes the same LoRA as the nodes.
"""
