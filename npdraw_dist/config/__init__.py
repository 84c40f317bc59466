"""The settings of an experiment, its presets, and how flags and files become one config."""
