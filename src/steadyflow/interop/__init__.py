"""Models of other libraries as models of this one: sbi, torchcfm and flow_matching, EDM, k-diffusion, ONNX.

Each function reads the path, the prediction and the times from what it is given, checks them against that object's
own numbers where it has any, and refuses by name what it cannot honour.
"""

from .edm import EDMModel, from_edm
from .flow_matching import from_flow_matching, from_torchcfm
from .kdiffusion import KDiffusionModel, from_kdiffusion
from .onnx import describe_onnx, from_onnx
from .sbi import PosteriorModel, from_sbi

__all__ = [
    "EDMModel",
    "KDiffusionModel",
    "PosteriorModel",
    "describe_onnx",
    "from_edm",
    "from_flow_matching",
    "from_kdiffusion",
    "from_onnx",
    "from_sbi",
    "from_torchcfm",
]
