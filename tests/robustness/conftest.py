"""The archives and folders made for the tests of streams are for these tests, too, also where they are run alone."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "streams"))
