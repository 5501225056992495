"""What only experiments need, beside the library steadyflow: studies, theory, data sets, models, the demonstration.

`coupling`, `editing`, `hallucination`, `instability` and `stein` are the studies of papers, `piebench` a benchmark,
`demo` and `report` the demonstration, `theory` what is known of mode interpolation.
"""
