"""Nothing is fetched by any test, and each uses one thread, as two of them run at a time."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
