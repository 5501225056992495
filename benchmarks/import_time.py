"""What `import steadyflow` adds to `import torch`, in fresh processes:  python benchmarks/import_time.py"""

import statistics
import subprocess
import sys

CODE = "import time, torch; t = time.perf_counter(); import steadyflow; print(time.perf_counter() - t)"
times = [float(subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True).stdout) for _ in range(5)]
print(f"import steadyflow after torch: median {statistics.median(times):.3f} s of {len(times)}")
