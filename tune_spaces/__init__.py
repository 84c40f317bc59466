"""Sweeps on Ray Tune: search spaces as data, and the command that runs them."""
