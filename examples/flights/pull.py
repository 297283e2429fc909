"""Pulls one table out of the source distribution, unpacked if it is zipped in there, unchanged.

The `pull_*` tasks call it, one a table. It never looks at what the table holds.
"""

import tarfile
import zipfile
import zlib
from pathlib import Path

from tables import arguments, fail, whole


def main() -> None:
    """Pulls out the table that the arguments name."""
    sdist, table, target = arguments("SDIST", "TABLE", "TARGET")
    try:
        content = pull(Path(sdist), f"{table}.csv")
    except (OSError, EOFError, KeyError, tarfile.TarError, zipfile.BadZipFile, zlib.error) as fault:
        fail(f"{sdist}: {fault}")
    with whole(Path(target)) as part:
        part.write_bytes(content)


def pull(sdist: Path, file_name: str) -> bytes:
    """The content of `data/file_name`, or of that file zipped."""
    with tarfile.open(sdist, "r:gz") as archive:
        for member in archive:
            if member.name.endswith((f"/data/{file_name}", f"/data/{file_name}.zip")):
                break
        else:
            fail(f"{sdist}: no {file_name} in it")
        packed = archive.extractfile(member)
        if packed is None:
            fail(f"{sdist}: {member.name} is no file")
        if not member.name.endswith(".zip"):
            return packed.read()
        with zipfile.ZipFile(packed) as inner:
            return inner.read(file_name)


if __name__ == "__main__":
    main()
