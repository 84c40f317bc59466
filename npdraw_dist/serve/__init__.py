"""The command `serve`: the editor's HTTP API, its page, and both as a Ray Serve application."""
