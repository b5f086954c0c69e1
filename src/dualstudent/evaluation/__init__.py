"""Evaluation: what an owner learns about a clone. Never charged to the attack's account."""

from dualstudent.evaluation.bound import Witness, before, bound
from dualstudent.evaluation.fidelity import ask, ask_all, cohen, fidelity, fitting, joined, logits, wilson

__all__ = [
    "Witness",
    "ask",
    "ask_all",
    "before",
    "bound",
    "cohen",
    "fidelity",
    "fitting",
    "joined",
    "logits",
    "wilson",
]
