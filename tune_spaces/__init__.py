"""Defines search spaces, runs sweeps over them (`npdraw sweep`) and compares models (`npdraw report`)."""
