"""Numbers as plots, by matplotlib: the only package that the pack needs beside those of ComfyUI.

Every function takes values and gives a `Figure` of its own: there is no global state, so that threads may draw at once.
Needs nothing of the host, so that nodes and programs share it; imports nothing of the other rooms but their types.
"""
