"""python -m dualstudent."""

import sys

from dualstudent.cli import main

sys.exit(main())
