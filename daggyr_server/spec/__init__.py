"""Run specifications: decoded, checked and expanded into what makes a graph. Pure: no asyncio, gRPC, files or clock.

`decode_json` (or `run_spec_from_message`) gives a RunSpec, `expand` the Addition that makes its graph; `expand_generated` does
both for what a generator printed, `expand_edit` for a run that gets another specification. Faults of input leave as
SpecificationError, all together.
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
