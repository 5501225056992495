"""What the experiments look at on the way."""

from ..integrate import Moment


class Largest:
    """A callback that remembers the largest |x| it saw, over all runs it was given to."""

    def __init__(self):
        self.value = 0.0

    def __call__(self, moment: Moment) -> None:
        self.value = max(self.value, moment.x.abs().max().item())
