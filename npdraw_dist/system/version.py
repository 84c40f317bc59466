"""The package's version, which files, models and answers of the studio name; pyproject.toml has it too."""

__version__ = "0.3.0"
