"""The settings of an experiment, its presets, and how flags and files become one config."""

from npdraw_dist.config.schema import Experiment

__all__ = ["Experiment"]
