"""The experiments and the demonstration."""
