"""`samplernn train` as a script, for launchers that want a file."""

from __future__ import annotations

import sys

from samplernn.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
