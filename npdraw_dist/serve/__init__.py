"""The editor: its HTTP API, its page, and both as a Ray Serve application."""
