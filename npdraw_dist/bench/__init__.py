"""The command `bench`: each of its sections measures one thing and returns flat figures."""
