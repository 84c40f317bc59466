"""A model as one HTML file that samples, replays and edits in a browser alone."""
