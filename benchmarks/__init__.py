"""Interleaved benchmarks of RLG sampling against the other ways to the same picture; see run.py."""
