"""Detectors of hallucinated samples that need no knowledge of the modes, and how well a score separates two classes.

`TrajectoryVariance` is the detector of Aithal et al. 2024 (2406.09358): the variance of the predicted clean sample over
a late window of the run, averaged over its dimensions, is large where a sample is between modes. Another is
`jacobians.largest_singular_value` of alpha d x0_hat / d x: below 1 at a mode, and one more than the eigenvalue of
2605.06831, P4.7, at the saddle between two.
"""

import torch
from torch import Tensor

from .._integrate import StepInfo
from ..errors import InputError


class TrajectoryVariance:
    """A callback that gathers the variance of the clean prediction over a window of steps near the end of a run.

    The clean prediction of a step follows from the two states around it (`StepInfo.denoised`), so that it costs no
    evaluations; for a stochastic solver it includes the noise as well. The memory is that of two tensors, whatever the
    number of steps.

    An object collects the scores of all batches that it sees, so that it serves one call of `sample`, with any batch
    size. For another call create a new one: the scores of a second call would be appended to those of the first.

    Args:
        window: The number of steps, at least 2.
        last: The number of steps that are left after the window.

    Attributes:
        window: The number of steps.
        last: The number of steps that are left after the window.

    Raises:
        InputError: The window is too short, or the run has too few steps for it.
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
        """The variance of each sample in the order of the batches, shape (n,).

        Raises:
            InputError: No run has ended yet.
        """
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
    """The area under the ROC curve: the chance that a positive scores above a negative, with ties counted half.

    Args:
        scores: One score per sample, shape (n,).
        positive: Which samples are positive, shape (n,), bool.

    Raises:
        InputError: There are no positives, or no negatives.
    """
    high, low = scores[positive].double(), scores[~positive].double()
    if len(high) == 0 or len(low) == 0:
        raise InputError("roc_area: expected both positives and negatives")
    order = low.sort().values
    below = torch.searchsorted(order, high) + torch.searchsorted(order, high, right=True)
    return (below.double().mean() / (2.0 * len(low))).item()
