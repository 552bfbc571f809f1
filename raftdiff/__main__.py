"""``python -m raftdiff`` is the ``raftdiff`` command."""

import sys

from raftdiff.cli.main import main

sys.exit(main())
