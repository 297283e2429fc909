"""The agent: a daemon that forks processes on a host for a coordinator; see README.md in this folder."""

__version__ = "0.1.0"
