"""The search spaces. Each file defines one as SPACE, and `--space` takes the name of the file."""
