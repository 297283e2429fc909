"""The coordinator's loop round the core, and what it is made of."""
