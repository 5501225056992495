"""The papers whose claims are held against this code."""

from .hallucination import PAPER as HALLUCINATION
from .instability import PAPER as INSTABILITY
from .stein import PAPER as STEIN

PAPERS = {paper.name: paper for paper in (INSTABILITY, HALLUCINATION, STEIN)}
"""By the name under which `steadyflow lab run` knows them."""
