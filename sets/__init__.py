"""Prompt sets and picture sets as files. Needs nothing of the host, so that nodes and scripts share it."""
