"""What the programs of a clone need around them: a ComfyUI, packages, a cache folder, processes that end when we do.

`dev.py` sets up from here, before anything is installed: the modules import the standard library and each other alone,
one way, from `set_up.py` and `lock_file.py` down to `messages.py`. An older Python than we need loads them too,
and is told so.
"""
