"""The coordinator and the client; see README.md in this folder for how the parts fit together."""

__version__ = "0.1.0"
