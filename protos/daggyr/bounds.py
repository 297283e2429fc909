"""Bounds that both ends of the wire share: what an agent may be told to offer, and what a coordinator takes from it.

Settings of agents and pools are checked against these where they are read, and hellos where they come in. Nothing here checks.
"""

from __future__ import annotations

MAX_UNITS = 10**15  # of one resource of one host: the sum over 9,000 hosts still fits an int64
MAX_RESOURCES = 1_000  # names of resources of one host
MAX_WORD = 200  # characters of the name of an agent or a resource
