"""The JSON Schema of the run format (draft 7, which editors read), made from the types in `document` and the words in `keys`.

The command line prints it for editors, which complete keys and underline faults with it. It says what can be said of one value
at a time; rules about several tasks, names and sizes are `decode`'s and `expand`'s, which alone decide. Most specifications are
YAML, in which scalars are text wherever text belongs; so the schema takes numbers and truth values there, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import msgspec

from daggyr_server.spec.document import Defaults, Details, RunSpec, TaskDefinition
from daggyr_server.spec.ignored import PREFIX
from daggyr_server.spec.keys import RUN, TASK, Key

DRAFT = "http://json-schema.org/draft-07/schema#"
_SCALAR = ["string", "number", "boolean"]
_OPEN = (RunSpec, TaskDefinition, Defaults)  # these take keys that are ignored


def json_schema() -> dict[str, Any]:
    """The schema of a whole specification, as a value that JSON can hold."""
    _, components = msgspec.json.schema_components((RunSpec, TaskDefinition), ref_template="#/definitions/{name}")
    definitions: dict[str, Any] = {name: _loose(shape) for name, shape in components.items()}
    run, task = definitions.pop(RunSpec.__name__), definitions[TaskDefinition.__name__]
    run["properties"]["tasks"]["additionalProperties"] = {"$ref": f"#/definitions/{TaskDefinition.__name__}"}
    for declared in _OPEN:
        shape = run if declared is RunSpec else definitions[declared.__name__]
        shape["patternProperties"] = {f"^{PREFIX}": True}
    details = definitions[Details.__name__]
    details["oneOf"] = [{"required": ["command"]}, {"required": ["script"]}]
    details["dependencies"] = {"shell": ["script"]}
    for shape in definitions.values():
        _refine(shape["properties"])
    _describe(run["properties"], RUN)
    for shape in (task, definitions[Defaults.__name__]):
        _describe(shape["properties"], TASK)
    for name in (details["title"], "DefaultDetails"):
        _describe(definitions[name]["properties"], _inner(TASK))
    run |= {"title": "DaggyR run specification", "description": "A run of DaggyR: `daggyr help spec` has the format in words."}
    return {"$schema": DRAFT, **run, "definitions": definitions}


def _loose(shape: Any) -> Any:
    """`shape` with scalars where text belongs, and without what is for programmers."""
    if isinstance(shape, list):
        return [_loose(item) for item in shape]
    if not isinstance(shape, dict):
        return shape
    made = {key: _loose(value) for key, value in shape.items() if key != "default"}
    if isinstance(made.get("description"), str):
        made["description"] = made["description"].partition("\n\n")[0]
    if made.get("type") == "string" and "pattern" not in made:
        made["type"] = _SCALAR
    return made


def _refine(properties: dict[str, Any]) -> None:
    """Add the rules that msgspec's schema does not have: those of `extra`, and that `memory_mb` alone takes a unit."""
    for key in ("command", "shell"):
        if key in properties:
            rest = properties[key]["items"]
            properties[key] |= {"items": [{**rest, "minLength": 1}], "additionalItems": rest}
    if "environment" in properties:
        properties["environment"]["propertyNames"]["pattern"] = "^[^=]+$"
    if "resources" in properties:
        units = properties["resources"]["additionalProperties"]
        properties["resources"] |= {"properties": {"memory_mb": units}, "additionalProperties": units["anyOf"][0]}


def _describe(properties: dict[str, Any], keys: Iterable[Key]) -> None:
    """Give the properties the words of `keys`."""
    for key in keys:
        for name in key.names:
            if name in properties:
                words = re.sub(r"\*", "", key.words)
                found = properties[name]
                found = {"allOf": [found]} if "$ref" in found else found
                properties[name] = {**found, "description": f"{words[:1].upper()}{words[1:]}. Example: {key.example}"}


def _inner(keys: Iterable[Key]) -> list[Key]:
    """The keys inside of `details`, by their names there."""
    return [
        key._replace(names=tuple(name.removeprefix("details.") for name in key.names))
        for key in keys
        if key.names[0].startswith("details.")
    ]
