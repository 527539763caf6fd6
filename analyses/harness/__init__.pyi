# What `lazy_loader` imports from here when it is used, and what type checkers see.
from .harness_condition import HarnessCondition, read_condition
from .plans_on_tasks import TaskScores, plans_on_tasks

__all__ = ["HarnessCondition", "TaskScores", "plans_on_tasks", "read_condition"]
