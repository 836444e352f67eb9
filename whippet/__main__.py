"""``python -m whippet`` is the command line."""

import sys

from whippet.cli.main import main

sys.exit(main())
