"""The papers whose claims are held against this code."""

from .editing import PAPER as EDITING
from .hallucination import PAPER as HALLUCINATION
from .instability import PAPER as INSTABILITY
from .stein import PAPER as STEIN

PAPERS = {paper.name: paper for paper in (INSTABILITY, EDITING, STEIN, HALLUCINATION)}
"""By the name under which `steadyflow lab run` knows them."""
