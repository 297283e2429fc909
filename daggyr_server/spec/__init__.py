"""Run specifications: decoded, checked and expanded into what makes a graph.

The API, the driver and the command line call what is listed here. Nothing in this package uses asyncio, gRPC, files or the clock,
so that the same document always gives the same result.

`decode_json` (or `run_spec_from_message`) makes a RunSpec, and `expand` makes the Addition for its graph; `expand_generated` does
both for what a generator printed, and `expand_edit` for a run that gets another specification. All faults of the input are told
together, in a SpecificationError. YAML is apart (`yaml_text`), because only the command line reads it.
"""

from daggyr_server.spec.decode import decode_json
from daggyr_server.spec.document import Details, ParentReference, RunSpec, TaskDefinition, encode_json
from daggyr_server.spec.edited import Edited, Printed, Stretch, differences, expand_edit, terms
from daggyr_server.spec.expand import expand
from daggyr_server.spec.faults import Fault, Faults, SpecificationError, listed
from daggyr_server.spec.generated import expand_generated
from daggyr_server.spec.message import run_spec_from_message
from daggyr_server.spec.policies import PoolLimits
from daggyr_server.spec.sizes import check_tags

__all__ = [
    "Details",
    "Edited",
    "Fault",
    "Faults",
    "ParentReference",
    "PoolLimits",
    "Printed",
    "RunSpec",
    "SpecificationError",
    "Stretch",
    "TaskDefinition",
    "check_tags",
    "decode_json",
    "differences",
    "encode_json",
    "expand",
    "expand_edit",
    "expand_generated",
    "listed",
    "run_spec_from_message",
    "terms",
]
