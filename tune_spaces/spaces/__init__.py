"""The search spaces: a file each, which names its Space SPACE. `--space` takes the file's name."""
