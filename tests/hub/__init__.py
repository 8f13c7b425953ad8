"""A small Hub on this machine, for tests: enough of its HTTP interface for the real clients."""
