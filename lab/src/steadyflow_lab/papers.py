"""The papers whose claims are held against this code."""

from .hallucination import PAPER as HALLUCINATION
from .instability import PAPER as INSTABILITY

PAPERS = {paper.name: paper for paper in (INSTABILITY, HALLUCINATION)}
"""By the name under which `steadyflow lab run` knows them."""
