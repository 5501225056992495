"""What shows the progress of a run."""

shown = []
"""What was shown: the step, the steps in all, and the shape of the picture."""


def prepare_callback(model, steps, x0_output_dict=None):
    def seen(step, x0, x, total_steps):
        if x0_output_dict is not None:
            x0_output_dict["x0"] = x0
        shown.append((step, total_steps, tuple(x0.shape)))

    return seen
