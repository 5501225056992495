"""Devices, and whether a run is to stop."""

import torch


class InterruptProcessingException(Exception):  # noqa: N818  # ComfyUI's name
    """The user stopped the run."""


stopped = False


def throw_exception_if_processing_interrupted():
    global stopped
    if stopped:
        stopped = False
        raise InterruptProcessingException


def intermediate_device():
    return torch.device("cpu")
