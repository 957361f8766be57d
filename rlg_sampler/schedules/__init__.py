"""Progress of a run → scale. Pure values that can be compared and composed; in: what a user wrote, out: a `Schedule`.

Imports nothing of the other rooms, and nothing of the host.
"""
