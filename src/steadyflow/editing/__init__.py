"""Ways of editing: each is an object with options of its own, given to `steadyflow.edit` as `method=`.

A method is a frozen dataclass with a name, registered where it is defined; `get` and `names` find them.
"""

from .base import Edit, EditMethod, EditRequest, finished, get, names, register
from .by_inversion import ByInversion, Direct
from .controlled import RFInversion
from .differences import DVRF, FlowAlign, FlowEdit
from .injection import MasaCtrl, PlugAndPlay, PromptToPrompt, ValueInjection
from .masks import mask_for
from .noise_maps import ByNoiseMaps, NoiseMaps, noise_maps
from .stepwise import PMI, ByFlowOpt, DNAEdit, UniEdit
from .verb import edit

__all__ = [
    "DVRF",
    "PMI",
    "ByFlowOpt",
    "ByInversion",
    "ByNoiseMaps",
    "DNAEdit",
    "Direct",
    "Edit",
    "EditMethod",
    "EditRequest",
    "FlowAlign",
    "FlowEdit",
    "MasaCtrl",
    "NoiseMaps",
    "PlugAndPlay",
    "PromptToPrompt",
    "RFInversion",
    "UniEdit",
    "ValueInjection",
    "edit",
    "finished",
    "get",
    "mask_for",
    "names",
    "noise_maps",
    "register",
]
