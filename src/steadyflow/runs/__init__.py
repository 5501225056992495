"""Runs: work on many samples that can be cut up, spread over a cluster, interrupted and resumed.

from steadyflow import runs

job = runs.Inverting("ink", n=10_000, solver="ees25", nfe=48, input="photographs", resize=True)
run = runs.run_job(job, "inverted", engine=runs.Ray())
for part in run.parts():
    ...

A job is one verb of the library, with the same words: `Sampling`, `Inverting`, `Reconstructing`, `Editing`,
`Diagnosing`. Without a folder, `run_job` keeps the results in memory.
"""

from .engines import Engine, InProcess, Ray, engine
from .exporting import check_export, export, results
from .folder import RunFolder, Shard
from .job import Aside
from .jobs import Diagnosing, Editing, Inverting, Job, Part, Reconstructing, Sampling, spec_of
from .run import Run, RunInMemory, run_job

__all__ = [
    "Aside",
    "Diagnosing",
    "Editing",
    "Engine",
    "InProcess",
    "Inverting",
    "Job",
    "Part",
    "Ray",
    "Reconstructing",
    "Run",
    "RunFolder",
    "RunInMemory",
    "Sampling",
    "Shard",
    "check_export",
    "engine",
    "export",
    "results",
    "run_job",
    "spec_of",
]
