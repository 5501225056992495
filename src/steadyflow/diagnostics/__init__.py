"""Diagnoses: what a solver and a model do to each other, in numbers."""
