"""What a training needs before it is run: GPU memory part by part, arithmetic, disk and time. No torch in this process.

`plan(config, pictures, outputs)` is all of it. The numbers come from running the training step itself, with the real
model's shapes and no data, on torch's meta device, in a child process (`measure.py`); `outputs/.plans` keeps them by
what they depend on, so that a form can ask at each change.
"""

from .plan import Plan, advice, plan, verdict
from .shapes import PlanError

__all__ = ["Plan", "PlanError", "advice", "plan", "verdict"]
