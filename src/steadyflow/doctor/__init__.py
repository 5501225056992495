"""Whether an installation works: versions, devices, folders, settings, and a short test of the library itself.

`steadyflow doctor` prints what `examine` finds. Nothing is downloaded, and nothing is left on the disk.
"""

from .examination import Finding, examine, faults

__all__ = ["Finding", "examine", "faults"]
