"""The schedulers of diffusers: whose configs are followed, whose are refused, and what every field concerns.

A config is a contract: every field is honoured or refused by its name. Where a config says where steps lie, diffusers'
own scheduler of that class is asked (`_planner`), so that spacings, offsets, shifts under all their names and the
Karras, exponential, beta and Lu placements are its own to the last bit. Fields concern

    path       the table of betas or the flow, and what the network predicts
    places     where the steps lie, and how a run ends
    estimate   clipping, thresholding and LCM's boundary: changes of the estimate of the data
    method     options of the method that `solver` replaces; they have no meaning for another one
    size       read by pipelines, to compute `mu` from the size of an image
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["table", "flow"]
"""What a scheduler's path is: a table of betas, or the straight path of flow models."""
Role = Literal["path", "places", "estimate", "method", "size"]

FIELDS: dict[str, Role] = {
    **dict.fromkeys(
        ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr",
         "snr_shift_scale", "prediction_type", "timestep_type"),
        "path",
    ),
    **dict.fromkeys(
        ("timestep_spacing", "steps_offset", "set_alpha_to_one", "final_sigmas_type", "use_karras_sigmas",
         "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas", "lambda_min_clipped", "interpolation_type",
         "use_flow_sigmas", "flow_shift", "shift", "shift_terminal", "use_dynamic_shifting", "time_shift_type",
         "invert_sigmas", "sigma_min", "sigma_max", "original_inference_steps", "scale_factors"),
        "places",
    ),
    **dict.fromkeys(
        ("clip_sample", "clip_sample_range", "thresholding", "dynamic_thresholding_ratio", "sample_max_value",
         "timestep_scaling"),
        "estimate",
    ),
    **dict.fromkeys(
        ("algorithm_type", "solver_order", "solver_type", "lower_order_final", "euler_at_final", "predictor_order",
         "corrector_order", "tau_func", "predict_x0", "disable_corrector", "solver_p", "skip_prk_steps",
         "variance_type", "noise_sampler_seed", "stochastic_sampling", "upscale_mode", "eta", "s_noise"),
        "method",
    ),
    **dict.fromkeys(("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len"), "size"),
}  # fmt: skip
"""Every field of the configs of `SOURCES`, and what it concerns."""

_CLIPPING = frozenset(("clip_sample", "clip_sample_range", "thresholding", "dynamic_thresholding_ratio",
                       "sample_max_value"))  # fmt: skip
PLACEMENTS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
"""Fields that place steps by their noise level."""


@dataclass(frozen=True)
class Source:
    """How one of diffusers' scheduler classes is read."""

    kind: Literal["table", "flow", "either"]
    """Its path; "either" follows from `use_flow_sigmas`."""
    planner: str | None = None
    """The class that places the steps in its stead, where it calls the network several times a step."""
    end: Literal["clean", "first", "config"] = "clean"
    """How a run ends where it has no sigmas: with the clean estimate, at the table's first entry, or by the config."""
    scaled: bool = False
    """Whether its state is x / alpha, whose first noise it scales by the largest sigma."""
    unread: frozenset[str] = frozenset()
    """Fields that the class accepts and never reads."""
    inherits: bool = False
    """Whether it hands fields that it does not have itself to the class that places its steps."""


SOURCES: dict[str, Source] = {
    "CogVideoXDDIMScheduler": Source("table", end="config", unread=_CLIPPING),
    "CogVideoXDPMScheduler": Source("table", end="config", unread=_CLIPPING),
    "DDIMScheduler": Source("table", end="config"),
    "DDIMInverseScheduler": Source("table", "DDIMScheduler", end="config"),
    "DDIMParallelScheduler": Source("table", end="config"),
    "DDPMScheduler": Source("table"),
    "DDPMParallelScheduler": Source("table"),
    "DEISMultistepScheduler": Source("either"),
    "DPMSolverMultistepScheduler": Source("either"),
    "DPMSolverMultistepInverseScheduler": Source("either", "DPMSolverMultistepScheduler"),
    "DPMSolverSDEScheduler": Source("table", "EulerDiscreteScheduler", scaled=True),
    "DPMSolverSinglestepScheduler": Source("either"),
    "EulerAncestralDiscreteScheduler": Source("table", scaled=True),
    "EulerDiscreteScheduler": Source("table", scaled=True),
    "FlowMatchEulerDiscreteScheduler": Source("flow"),
    "FlowMatchHeunDiscreteScheduler": Source("flow", "FlowMatchEulerDiscreteScheduler"),
    "FlowMatchLCMScheduler": Source("flow"),
    "HeunDiscreteScheduler": Source("table", "EulerDiscreteScheduler", scaled=True),
    "KDPM2AncestralDiscreteScheduler": Source("table", "EulerDiscreteScheduler", scaled=True),
    "KDPM2DiscreteScheduler": Source("table", "EulerDiscreteScheduler", scaled=True),
    "LCMScheduler": Source("table", unread=frozenset(("set_alpha_to_one",))),
    "LMSDiscreteScheduler": Source("table", scaled=True),
    "LTXEulerAncestralRFScheduler": Source("flow", "FlowMatchEulerDiscreteScheduler", inherits=True),
    "PNDMScheduler": Source("table", "DDIMScheduler", end="config"),
    "SASolverScheduler": Source("either"),
    "TCDScheduler": Source("table", end="first", unread=_CLIPPING | {"set_alpha_to_one"}),
    "UniPCMultistepScheduler": Source("either"),
}
"""The scheduler classes of diffusers whose configs are read."""

REFUSED: dict[str, str] = {
    **dict.fromkeys(
        ("CMStochasticIterativeScheduler", "CosineDPMSolverMultistepScheduler", "EDMDPMSolverMultistepScheduler",
         "EDMEulerScheduler", "KarrasVeScheduler", "ScoreSdeVeScheduler"),
        "its path is x0 + sigma eps with its own scaling of the network; wrap the network as a Denoiser over sf.VE()",
    ),
    **dict.fromkeys(
        ("AmusedScheduler", "BlockRefinementScheduler", "DiscreteDDIMScheduler", "EntropyBoundScheduler",
         "VQDiffusionScheduler"),
        "it is for discrete tokens, which have no path of Gaussian noise",
    ),
    **dict.fromkeys(
        ("HeliosScheduler", "HeliosDMDScheduler", "MiniMaxH3Scheduler", "PiflowScheduler",
         "FlowMapEulerDiscreteScheduler", "RFD4ProteinaScheduler"),
        "its steps are more than steps along one path; keep it in its pipeline",
    ),
    "DDPMWuerstchenScheduler": "its table is a function of the number of steps; keep it in its pipeline",
    "IPNDMScheduler": "its table is a function of the number of steps; keep it in its pipeline",
    "RePaintScheduler": "its pipeline goes back and forth in time; sf.edit(mask=...) confines changes to a mask",
    "SCMScheduler": "its path is trigonometric (prediction_type='trigflow'); keep it in its pipeline",
    "UnCLIPScheduler": "its pipelines hand it the previous timestep; keep it in its pipeline",
}  # fmt: skip
"""The scheduler classes of diffusers whose configs are refused, and why."""

OURS = ("SteadyScheduler", "SteadyInverseScheduler", "SteadyFlowScheduler", "SteadyFlowInverseScheduler")

NETWORK_FIELDS: dict[str, str] = {
    "in_channels": "the latents' channels; more are a further picture or mask, and refused",
    "out_channels": "the latents' channels; twice as many are a learned variance, and left aside",
    "sample_size": "the size where none is given",
    "patch_size": "what sizes must be a multiple of",
    "guidance_embeds": "the network is given `embedded_guidance`",
    "time_cond_proj_dim": "the network is given `embedded_guidance`",
    "class_embed_type": "refused if set, as the network takes classes",
    "num_class_embeds": "refused if set, as the network takes classes",
    "encoder_hid_dim_type": "refused if set, as the network takes embeddings of pictures",
    "addition_embed_type": "the sizes that SDXL takes; refused if it says another",
}
"""The fields of networks' configs that say what a network is given, and what is done; the others act inside of it."""

VAE_FIELDS: dict[str, str] = {
    "in_channels": "the pictures' channels",
    "latent_channels": "the latents' channels",
    "block_out_channels": "the pixels per latent",
    "scaling_factor": "the scale of the latents",
    "shift_factor": "their shift",
    "latents_mean": "their mean by channel, instead of the shift",
    "latents_std": "their standard deviation by channel",
    "force_upcast": "the VAE is run in float32 where it is in float16",
}
"""The fields of VAEs' configs that act outside of the VAE, and what is done."""

PIPELINE_FIELDS: dict[str, str] = {
    "force_zeros_for_empty_prompt": "guidance starts from zeros where no negative prompt is given",
    "requires_aesthetics_score": "the network is given the scores of the pipeline's own call",
}
"""The fields of pipelines' configs that change latents, and what is done."""
