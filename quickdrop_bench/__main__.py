"""``python -m quickdrop_bench``."""

import sys

from quickdrop_bench.cli import main

sys.exit(main())
