"""The command `export-demo` writes a model as one HTML file that samples, replays and edits in a browser."""
