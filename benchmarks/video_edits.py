"""Edits of held-out videos by the pipeline of moving digits:  python benchmarks/video_edits.py [--n N] [--nfe N]

What of the asked change is there in every frame, what became of the rest, and whether it holds still: see
`steadyflow_lab.editing.moving`, whose columns these are. Evaluations are equal: an edit beside its source has two
thirds of the others' each way. Half an hour of one core.
"""

import argparse
import warnings

from steadyflow_lab.editing import moving

parser = argparse.ArgumentParser()
parser.add_argument("--n", type=int, default=64, help="videos")
parser.add_argument("--nfe", type=int, default=48, help="evaluations each way")
options = parser.parse_args()
warnings.filterwarnings("ignore")
rows = moving.study(n=options.n, nfe=options.nfe)
print(f"{options.n} held-out videos, guidance {moving.GUIDANCE:g}, {2 * options.nfe} evaluations an edit\n")
for kind in ("all", "digit", "colour"):
    print(f"{kind}\n\n{moving.text(rows, kind)}\n")
