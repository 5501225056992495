"""steadyflow as nodes of ComfyUI: sample, invert, reconstruct, edit and diagnose any model that it can sample."""

from typing import Any

from .diagnosing import Diagnose
from .editing import Edit
from .inverting import Decode, Invert, Reconstruct
from .sampling import Sampler, Sigmas, TunedSampler

NODE_CLASS_MAPPINGS: dict[str, Any] = {
    "SteadyFlowSampler": Sampler,
    "SteadyFlowTunedSampler": TunedSampler,
    "SteadyFlowSigmas": Sigmas,
    "SteadyFlowInvert": Invert,
    "SteadyFlowDecode": Decode,
    "SteadyFlowReconstruct": Reconstruct,
    "SteadyFlowEdit": Edit,
    "SteadyFlowDiagnose": Diagnose,
}
"""The nodes by the names under which workflows keep them."""

NODE_DISPLAY_NAME_MAPPINGS: dict[str, str] = {
    "SteadyFlowSampler": "Sampler (steadyflow)",
    "SteadyFlowTunedSampler": "Tuned Sampler (steadyflow)",
    "SteadyFlowSigmas": "Sigmas (steadyflow)",
    "SteadyFlowInvert": "Invert (steadyflow)",
    "SteadyFlowDecode": "Decode (steadyflow)",
    "SteadyFlowReconstruct": "Reconstruct (steadyflow)",
    "SteadyFlowEdit": "Edit (steadyflow)",
    "SteadyFlowDiagnose": "Diagnose (steadyflow)",
}
"""What they are called in menus."""

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
