"""The formula, and how a run of the host follows it: which models a step needs, in how many calls, and their mix.

In: a pair and a schedule; out: a MODEL or a GUIDER for any sampler. Imports schedules and weights.

From node to formula: guided_model → guided_run → branch_calls → shared_call → deltas of the weights; mixing.
"""
