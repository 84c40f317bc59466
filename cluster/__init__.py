"""Launch files for clusters."""
