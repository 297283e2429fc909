"""The command `schema`, which prints the JSON Schema of the run format for editors. It needs no server and reads no file."""

from __future__ import annotations

from daggyr_server.cli import stdout
from daggyr_server.cli.options import command
from daggyr_server.spec.schema import json_schema


@command("schema", example="daggyr schema")
def schema() -> int:
    """Print the JSON Schema of specifications, with which editors complete and check them.

    Written to a file daggyr.schema.json, it is used by editors with a YAML language server for specifications beside it that
    begin with the line `# yaml-language-server: $schema=daggyr.schema.json`.
    """
    stdout.document(json_schema())
    return 0
