"""The command `serve`: the studio's HTTP API, its page, and both as a Ray Serve application."""
