"""Tests of one module at a time, in the packages of `src/devwatch`."""
