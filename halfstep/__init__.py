"""halfstep: how few steps can your diffusion model get away with, and what does it cost?

The public names load when they are first used, so that importing the package stays cheap.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
