"""What `python dev.py demo` runs: a small model, the server and the comparison pictures."""
