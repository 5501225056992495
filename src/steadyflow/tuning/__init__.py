"""Solvers fitted to a model: `tune`.

`schemes` has what is fitted and finds it in any linear solver, `own_states` the fit in closed form, `derivatives` and
`fitting` the Gauss-Newton steps, `progress` how far they go, `round_trips` the aim of both ways, `starts` the samples,
`judging` the comparison with plain solvers, `work` all of one tune, `journal` its file, `verb` the verb.
"""

from .verb import estimate, tune

__all__ = ["estimate", "tune"]
