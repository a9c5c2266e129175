"""Is this model traced rightly? Every site, edit, backend and kernel of one model, tried and reported.

python -m interp.conformance MODEL
"""

from interp.conformance.checks import conformance
from interp.conformance.report import Conformance, Outcome

__all__ = ["Conformance", "Outcome", "conformance"]
