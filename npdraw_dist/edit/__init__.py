"""The command `edit`: part sequences edited from the command line."""
