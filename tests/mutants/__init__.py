"""Bugs that are put into copies of the shipped code, one at a time, to see that the simulator finds each of them.

``patches/`` holds one patch per bug. ``python -m tests.mutants`` runs them all; docs/mutants.rst tells what came out.
"""
