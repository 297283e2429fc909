"""Compiles the contract while the package is built.

Hatchling calls this as its custom hook for wheels and editable installs: every `.proto` below this folder becomes
modules beside it (`daggyr/v1/*_pb2.py`, their type stubs and the service stubs), which are added to the wheel although
git ignores them. `python protos/compile.py` does the same by hand after an edit of a `.proto`. It never downloads.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ModuleNotFoundError:  # by hand, where only the generator is installed
    BuildHookInterface = object

HERE = Path(__file__).resolve().parent


def compile_protos(root: Path = HERE) -> None:
    """Write the Python modules of all `.proto` files below `root`. Raises RuntimeError if the compiler refuses one."""
    from grpc_tools import protoc

    well_known = resources.files("grpc_tools") / "_proto"
    sources = sorted(str(path.relative_to(root)) for path in root.rglob("*.proto"))
    arguments = ["protoc", f"-I{root}", f"-I{well_known}"]
    arguments += [f"--{out}={root}" for out in ("python_out", "pyi_out", "grpc_python_out")]
    if protoc.main(arguments + sources) != 0:
        raise RuntimeError(f"the protobuf compiler refused one of: {', '.join(sources)}")


class CompileProtos(BuildHookInterface):  # type: ignore[misc]
    """The hook itself; hatchling finds it as the only BuildHookInterface of this file."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile before the files of the wheel are collected (a source distribution takes the `.proto` files)."""
        if self.target_name == "wheel":
            compile_protos()
            build_data["artifacts"] += ["*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py"]


if __name__ == "__main__":
    compile_protos()
