"""Tools: what the assistant and plans can use, how their arguments are checked, and their runs."""

from services.tools.base import ToolContext
from services.tools.execute import Outcome, execute, settle_lost
from services.tools.registry import check_arguments, seed, specs, update

__all__ = [
    "Outcome",
    "ToolContext",
    "check_arguments",
    "execute",
    "seed",
    "settle_lost",
    "specs",
    "update",
]
