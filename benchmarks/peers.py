"""Other libraries, as the benchmarks here use them."""

import importlib
import importlib.util
import sys
from types import ModuleType


def k_diffusion_sampling():
    """k-diffusion's `sampling` module, or None where it is not installed.

    Its samplers module alone is used: `pip install --no-deps k-diffusion torchdiffeq torchsde trampoline` is enough.
    """
    spec = importlib.util.find_spec("k_diffusion")
    if spec is None or spec.submodule_search_locations is None:
        return None
    package, helpers = ModuleType("k_diffusion"), ModuleType("k_diffusion.utils")
    package.__path__ = list(spec.submodule_search_locations)
    # its own helpers need torchvision; the samplers need this one function of them
    helpers.append_dims = lambda x, ndim: x[(..., *(None,) * (ndim - x.ndim))]
    package.utils = helpers
    sys.modules.update({"k_diffusion": package, "k_diffusion.utils": helpers})
    return importlib.import_module("k_diffusion.sampling")
