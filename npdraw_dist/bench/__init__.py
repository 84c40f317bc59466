"""The command `bench`. Each of its sections measures one subject, and returns a flat mapping of figures."""
