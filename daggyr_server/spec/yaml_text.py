"""YAML documents as JSON: scalars are text, and the specification says which of them are numbers or truth values.

So `no`, dates and `012` stay what they are where text belongs, quotes or not. Repeated keys are refused; anchors, aliases
and merge keys (`<<`) work, within a bound on what aliases add, so that a small document cannot become a huge one. The CLI
calls this; servers take JSON only. What the document says is for `decode` to judge: only what YAML itself gets wrong is a
fault here, each with line and column.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec
import yaml
from msgspec import inspect

from daggyr_server.spec.check import shape_of
from daggyr_server.spec.document import RunSpec, TaskDefinition
from daggyr_server.spec.faults import Fault, Faults, SpecificationError, quoted, shown

MAX_ALIASED_BYTES = 64 * 1024 * 1024
_MAX_DEPTH = 100

# The C parser is ten times faster, and missing where PyYAML was built without libyaml.
_Loader: Any = getattr(yaml, "CBaseLoader", yaml.BaseLoader)

# JSON's numbers (RFC 8259), so that what stands in the document is what arrives. YAML's other ways to write numbers stay
# text, and are refused with a hint.
_NUMBER = re.compile(r"-?(?:0|[1-9]\d{0,30})(?P<real>(?:\.\d{1,30})?(?:[eE][+-]?\d{1,3})?)")
_TRUTH = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_TAGS = {None, "!", *(f"tag:yaml.org,2002:{kind}" for kind in ("bool", "float", "int", "map", "seq", "str"))}
_MERGE = object()  # stands for a plain `<<`


def yaml_to_json(data: bytes) -> bytes:
    """The JSON document that says what a YAML document (YAML 1.1, UTF-8 or UTF-16) says.

    Raises SpecificationError for what is no YAML, repeated keys, keys that are no text, tags, several documents, aliases of
    what they are part of, and aliases that add more than MAX_ALIASED_BYTES.
    """
    try:
        value = _Tree(_events(data)).value()
        return msgspec.json.encode(_typed(value, _RUN_SHAPE))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = ", ".join(part for part in (error.context, error.problem) if part)
        raise SpecificationError([Fault(None, _position(mark) if mark else "", f"the document is no YAML: {what}")]) from None
    except (yaml.YAMLError, UnicodeError) as error:
        what = shown(" ".join(str(error).split()))
        raise SpecificationError([Fault(None, "", f"the document is no YAML: {what}", "save it as UTF-8")]) from None
