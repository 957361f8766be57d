"""How Reinforcement Learning Guidance works: no node schema, no file dialogs, no UI.

Rooms, and what each may import (arrows go one way; `tests/package/test_package.py` holds them):

    schedules   progress of a run → scale                             nothing
    stochastic  one step with noise, as RL training explores          nothing
    weights     a LoRA file or two patch lists → changes of modules   messages
    guidance    one run, one step, the formula                        schedules, weights, ksampler_inputs
    sweeps      several runs that belong together                     guidance, schedules, ksampler_inputs
"""
