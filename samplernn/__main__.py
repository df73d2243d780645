"""`python -m samplernn`."""

from __future__ import annotations

import sys

from samplernn.cli import main

sys.exit(main())
