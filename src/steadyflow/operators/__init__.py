"""Measurement operators: the A of a measurement y = A(x) + noise n of samples x, for `corrections.Posterior`.

An operator takes a batch x (B, ...) to measurements (B, ...), each from its own sample. The linear ones have an
adjoint A^T, with <A x, y> = <x, A^T y>, which is found by automatic differentiation. For small samples they also have
a dense matrix:

    Inpainting     the entries of x where a mask is True
    Blur           a convolution over the last two dimensions
    Downsampling   means over blocks of factor x factor pixels
    Matrix         M x, of samples that are vectors
    Linear         any linear function

Any other function of x is a nonlinear operator, for the methods that differentiate it. With a model of latents, an
operator on pictures decodes first: `lambda z: blur(decode(z))`.
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
