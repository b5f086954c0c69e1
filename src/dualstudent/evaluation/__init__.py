"""Evaluation: what an owner learns about a clone. Never charged to the attack's account."""

from dualstudent.evaluation.bound import Witness, before, bound
from dualstudent.evaluation.fidelity import ask, cohen, fidelity, fitting, logits, wilson

__all__ = ["Witness", "ask", "before", "bound", "cohen", "fidelity", "fitting", "logits", "wilson"]
