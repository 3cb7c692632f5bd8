"""`python -m halfstep` is the command `halfstep`, for launchers such as torchrun."""

import sys

from halfstep.cli import main

sys.exit(main())
