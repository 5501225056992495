"""Helpers without a public interface, which steadyflow-lab, released together with this package, uses too.

tensors       arithmetic on batches
numerics      root finding
autograd      when gradients are recorded
files         writing files whole or not at all, and reading them safely
extensions    what installed extension packages register
imports       what of an optional package is missing or broken
plots         matplotlib figures
pictures      images as arrays of eight bits
pooling       masks over pixels on the grid of a latent
html          HTML reports
"""
