from .strategies import attention_inputs, plans
from .suite import Conformance, check_backend

__all__ = ["Conformance", "attention_inputs", "check_backend", "plans"]
