"""What the experiments look at on the way."""

from steadyflow._integrate import StepInfo


class Largest:
    """A callback that remembers the largest |x| it saw, over all runs it was given to."""

    def __init__(self):
        self.value = 0.0

    def __call__(self, info: StepInfo) -> None:
        self.value = max(self.value, info.x.abs().max().item())
