"""Detectors of hallucinated samples that know no modes, and how well they tell them apart.

`TrajectoryVariance` is that of Aithal et al. 2024 (2406.09358): the variance of the predicted clean sample over a late
window of the run, averaged over its dimensions, is large where a sample is between modes. `stretch` is the largest
singular value of alpha d x0_hat / d x: below 1 at a mode, and one more than the eigenvalue of 2605.06831, P4.7, at
the saddle between two.
"""

import torch
from torch import Tensor

from .._integrate import StepInfo
from ..errors import InputError


class TrajectoryVariance:
    """A callback that gathers the variance over the steps from `last` + `window` to `last` before the end.

    The clean prediction of a step is read from the two states around it (`StepInfo.clean`), so that it costs no
    evaluations; of a stochastic solver it holds the noise as well. Keeps two tensors, whatever the number of steps. One
    object serves one call of `sample`, with any batch size.
    """

    def __init__(self, window: int = 10, last: int = 0):
        if window < 2 or last < 0:
            raise InputError(f"variance: expected window >= 2 and last >= 0, got {window} and {last}")
        self.window, self.last = window, last
        self._done: list[Tensor] = []
        self._count = 0
        self._mean = self._squares = torch.zeros(())

    @property
    def scores(self) -> Tensor:
        """The variance of each sample, shape (n,). Raises `InputError` before a run has ended."""
        if not self._done:
            raise InputError("variance: no run has ended; give this as sample(callback=...)")
        return torch.cat(self._done)

    def __call__(self, info: StepInfo) -> None:
        left = info.remaining
        if self.last <= left < self.last + self.window:
            if info.done == 1:
                raise InputError(f"variance: a window of {self.window} steps in a run of {info.total}")
            self._add(info.denoised)
            if left == self.last:
                self._done.append((self._squares / (self._count - 1)).flatten(1).mean(1))
                self._count = 0

    def _add(self, clean: Tensor) -> None:
        """Welford's update of mean and squared deviations."""
        self._count += 1
        if self._count == 1:
            self._mean, self._squares = clean, torch.zeros_like(clean)
            return
        off = clean - self._mean
        self._mean = self._mean + off / self._count
        self._squares = self._squares + off * (clean - self._mean)


def roc_area(scores: Tensor, positive: Tensor) -> float:
    """The area under the ROC curve: the chance that a positive scores above a negative, ties counted half."""
    high, low = scores[positive].double(), scores[~positive].double()
    if len(high) == 0 or len(low) == 0:
        raise InputError("roc_area: expected both positives and negatives")
    order = low.sort().values
    below = torch.searchsorted(order, high) + torch.searchsorted(order, high, right=True)
    return (below.double().mean() / (2.0 * len(low))).item()
