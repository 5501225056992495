"""The papers whose claims are held against this code."""

from .editing import PAPER as EDITING
from .hallucination import PAPER as HALLUCINATION

PAPERS = {paper.name: paper for paper in (EDITING, HALLUCINATION)}
"""By the name under which `steadyflow lab run` knows them."""
