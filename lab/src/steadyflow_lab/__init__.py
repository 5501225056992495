"""What only experiments need, beside the library steadyflow: studies, theory, data sets, models, the demonstration.

`editing` (with the benchmark PIE-Bench), `hallucination`, `instability` and `stein` are the studies of papers,
`demo` and `report` the demonstration, `theory` what is known of mode interpolation.
"""
