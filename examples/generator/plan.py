"""Prints a task for each text of a folder, and one that adds up what they find, as a JSON object.

The task `plan`, a generator, calls it. It prints nothing else, and never reads the texts: that is for
the tasks.
"""

import json
import sys
from pathlib import Path


def main() -> None:
    """Prints the tasks."""
    if len(sys.argv) != 2:
        print("usage: plan.py FOLDER", file=sys.stderr)
        sys.exit(2)
    texts = sorted(Path(sys.argv[1]).glob("*.txt"))
    if not texts:
        sys.exit(f"plan.py: no texts in {sys.argv[1]}")
    counts = {f"count-{text.stem}": count(text.name) for text in texts}
    total = {
        "details": {"command": ["sh", "-c", "cat out/*.words | sh total.sh > out/total"]},
        "parents": list(counts),
    }
    json.dump(counts | {"total": total}, sys.stdout, indent=2)


def count(file_name: str) -> dict[str, object]:
    """The task that counts one text's words. The run's parameters are replaced in it, too."""
    return {
        "details": {
            "command": ["sh", "count.sh"],
            "environment": {"TEXT": "{{TEXTS}}/" + file_name, "COUNT": f"out/{file_name}.words"},
        }
    }


if __name__ == "__main__":
    main()
