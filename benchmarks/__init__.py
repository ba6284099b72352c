"""Measurements: `python -m benchmarks` lists them. torch stands beside us in the same run; nothing here is imported by the library."""
