"""Fuzzing: whatever the world says, devwatch answers with a value or with an error of its own.

`python -m fuzz --help` runs one target for long, guided by coverage; `test_fuzz.py` runs all of them for seconds.
"""
