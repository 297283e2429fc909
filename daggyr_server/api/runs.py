"""The client's service, put together of the calls, which stand in files by what they are for.

The coordinator registers it on the listener. Each call translates a request for the driver and the driver's answer for the wire,
and decides nothing; runs.proto names the errors of each.
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
