"""The executor whose attempts run on hosts that are reached over SSH."""
