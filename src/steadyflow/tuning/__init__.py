"""Solvers fitted to a model: `tune`.

`schemes` has what is fitted and finds it in any linear solver, `fitting` the Gauss-Newton steps, `starts` the samples,
`judging` the comparison with plain solvers, `verb` the verb.
"""

from .verb import estimate, tune

__all__ = ["estimate", "tune"]
