"""Measurement operators: what a measurement y = A(x) + noise n sees of samples x, for `corrections.Posterior`.

An operator takes a batch x (B, ...) to measurements (B, ...), each from its own sample. The linear ones have an
adjoint, <A x, y> = <x, A^T y>, found by automatic differentiation, and for small samples a dense matrix:

    Inpainting     the entries of x where a mask holds
    Blur           K * x, a kernel over the two last dimensions
    Downsampling   means over blocks of factor x factor pixels
    Matrix         M x, of samples that are vectors
    Linear         any linear function

Any other function of x is a nonlinear operator, of which methods that differentiate it can make use. An operator on
pictures with a model of latents is one that decodes first: `lambda z: blur(decode(z))`.
"""

from .base import DENSE_LIMIT, Linear, Matrix, Nonlinear, Operator, check, measured, of
from .pictures import Blur, Downsampling, Inpainting, Padding

__all__ = [
    "DENSE_LIMIT",
    "Blur",
    "Downsampling",
    "Inpainting",
    "Linear",
    "Matrix",
    "Nonlinear",
    "Operator",
    "Padding",
    "check",
    "measured",
    "of",
]
