"""Measurements: `python -m benchmarks` lists them. torch is measured in the same run; the library imports nothing from here."""
