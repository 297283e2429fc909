"""The contract between coordinator, agents and clients: the messages in `daggyr.v1` and the few rules that go with them.

Both sides of the wire import this package, and it imports neither of them. README.md in this folder lists its modules.
"""
