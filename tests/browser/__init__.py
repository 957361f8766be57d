"""The pack as a user meets it: in a browser, with ComfyUI's own front end and server. `front_end.py` drives both."""
