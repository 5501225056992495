"""The papers whose claims are held against this code."""

from .hallucination import PAPER as HALLUCINATION

PAPERS = {paper.name: paper for paper in (HALLUCINATION,)}
"""By the name under which `steadyflow lab run` knows them."""
