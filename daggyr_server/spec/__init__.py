"""Run specifications: decoded, checked and expanded into what makes a graph. Pure: no asyncio, gRPC, files or clock."""

from daggyr_server.spec.decode import decode_json
from daggyr_server.spec.document import Details, ParentReference, RunSpec, TaskDefinition, encode_json
from daggyr_server.spec.expand import expand
from daggyr_server.spec.faults import Fault, SpecificationError
from daggyr_server.spec.policies import PoolLimits

__all__ = [
    "Details",
    "Fault",
    "ParentReference",
    "PoolLimits",
    "RunSpec",
    "SpecificationError",
    "TaskDefinition",
    "decode_json",
    "encode_json",
    "expand",
]
