"""The client's service: translates requests for the driver and its answers for the wire, and decides nothing.

Registered on the listener by the entry point. Each method's errors stand in runs.proto; the calls are in files by what they are
for.
"""

from __future__ import annotations

from daggyr.v1.runs_pb2_grpc import RunsServicer
from daggyr_server.api.hosts import Hosts
from daggyr_server.api.reading import Reading
from daggyr_server.api.steering import Steering
from daggyr_server.api.submitting import Submitting
from daggyr_server.api.watching import Watching


class RunsService(Submitting, Reading, Watching, Steering, Hosts, RunsServicer):
    """See runs.proto."""
