"""The command `edit`: edits drawings from the command line."""
