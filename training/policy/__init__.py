"""The model with the LoRA that learns: latents and a prompt in, x0 out, with or without gradients.

`trainable_lora` adds the small matrices that have gradients to the modules that `targets` names, `host_model` calls the
model through the host, and `gradients` makes a backward pass possible meanwhile. Imports `rlg_sampler` and `streams`.
"""
