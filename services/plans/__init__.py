"""Plans: steps that depend on each other, and their executions."""

from services.plans.drafting import StepInput, create, delete
from services.plans.executing import cancel, execute

__all__ = ["StepInput", "cancel", "create", "delete", "execute"]
