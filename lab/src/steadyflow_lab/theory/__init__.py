"""What the papers derive, as functions that tests hold against simulations.

`interpolation` has the flow between modes and `saddles` what holds it there (arXiv 2605.06831); `stein` has what bounds
Stein's coefficient (arXiv 2606.07835); `instability` when the map of a mixture expands (arXiv 2506.18290).
"""
