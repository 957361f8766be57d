"""Prompts and pictures on disk. Needs nothing of the host, so that nodes and programs share it."""
