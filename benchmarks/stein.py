"""What a Stein correction costs in wall time, on two networks and one thread:  python benchmarks/stein.py"""

import torch

from steadyflow_lab.pages import figure_table
from steadyflow_lab.stein import PAPER
from steadyflow_lab.studies import run_figures

torch.set_num_threads(1)


def main():
    (found,) = run_figures(PAPER, ["overhead"])
    print(figure_table(found))


if __name__ == "__main__":
    main()
