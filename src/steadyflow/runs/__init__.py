"""Runs: work on many samples that can be cut up, spread over a cluster, interrupted and resumed.

from steadyflow import runs

job = runs.Inverting("ink", n=10_000, solver=runs.spec_of("ees25"), steps=16, input="photographs", resize=True)
run = runs.run_job(job, "inverted", engine=runs.Ray())
for part in run.parts():
    ...
"""

from .engines import Engine, InProcess, Ray, engine
from .folder import RunFolder, Shard
from .jobs import Diagnosing, Inverting, Job, Part, Sampling, spec_of
from .run import run_job

__all__ = [
    "Diagnosing",
    "Engine",
    "InProcess",
    "Inverting",
    "Job",
    "Part",
    "Ray",
    "RunFolder",
    "Sampling",
    "Shard",
    "engine",
    "run_job",
    "spec_of",
]
