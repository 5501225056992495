"""What the fields of diffusers' scheduler configs ask for; the one place where they are read (see `_sources`)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

from ..errors import InputError
from ..prediction import Clip, PredictionType
from ._identify import OWN_FIELDS, check_known, class_of, parameters_of, refuse_data_scale
from ._sources import FIELDS, NETWORK_FIELDS, OURS, PIPELINE_FIELDS, PLACEMENTS, REFUSED, SOURCES, VAE_FIELDS, Kind


def complete(config: Mapping[str, Any], name: str | None) -> dict[str, Any]:
    """A config's fields as its class acts on them: with the class's defaults, without what it does not read.

    Args:
        config: The config, of diffusers' classes or of nobody's.
        name: The class that wrote it, as from `class_of`.

    Raises:
        InputError: A field is not known.
    """
    given = {k: v for k, v in config.items() if not k.startswith("_") and k not in OWN_FIELDS}
    if name in ("FlowMatchEulerDiscreteScheduler", "UniPCMultistepScheduler"):
        refuse_data_scale(given)
    if name is None or name not in SOURCES:
        check_known(name or "the config", given)
        return given
    source, parameters = SOURCES[name], parameters_of(name)
    fields = {k: given.get(k, p.default) for k, p in parameters.items()}
    if source.inherits and source.planner is not None:
        fields |= {k: given[k] for k in parameters_of(source.planner) if k in given}
    check_known(name, fields)
    if source.unread:
        fields = {k: v for k, v in fields.items() if k not in source.unread}
    return fields


def settle_spacing(
    fields: dict[str, Any], config: Mapping[str, Any], name: str | None, changes: Mapping[str, Any]
) -> dict[str, Any]:
    """The fields with "leading" spacing where the config gives an offset for it and leaves the spacing to a default.

    Args:
        fields: The fields, as from `complete`.
        config: The config.
        name: The class that wrote it.
        changes: What the user changes.
    """
    spacing = fields.get("timestep_spacing")
    by_default = set(config.get("_use_default_values", ())) | (fields.keys() - config.keys())
    if (
        "timestep_spacing" in changes
        or "timestep_spacing" not in by_default
        or spacing in (None, "leading")
        or (name in SOURCES and spacing != parameters_of(name)["timestep_spacing"].default)
        or not fields.get("steps_offset")
    ):
        return fields
    warnings.warn(
        f"the config gives steps_offset={fields['steps_offset']}, which only timestep_spacing='leading' reads, and "
        f"leaves the spacing to {name}'s default, {spacing!r}: 'leading' is taken; give timestep_spacing to choose",
        stacklevel=3,
    )
    return {**fields, "timestep_spacing": "leading"}


def kind_of(fields: Mapping[str, Any], name: str | None) -> Kind:
    """The kind of path that a config describes.

    Args:
        fields: Its fields, as from `complete`.
        name: The class that wrote it, if known.

    Raises:
        InputError: It describes neither, or contradicts itself.
    """
    if name in OURS:
        return "flow" if "Flow" in str(name) else "table"
    kind = SOURCES[name].kind if name in SOURCES else "either"
    if kind != "either":
        return kind
    flow_prediction = fields.get("prediction_type") == "flow_prediction"
    betas = any(fields.get(k) is not None for k in ("beta_start", "trained_betas", "beta_schedule"))
    shifted = "shift" in fields or "use_dynamic_shifting" in fields
    flow = bool(fields.get("use_flow_sigmas")) or (name is None and (flow_prediction or (shifted and not betas)))
    if flow and fields.get("prediction_type", "flow_prediction") != "flow_prediction":
        raise InputError(
            f"use_flow_sigmas: needs prediction_type='flow_prediction', the config has {fields['prediction_type']!r}"
        )
    if flow_prediction and not flow:
        raise InputError("prediction_type: 'flow_prediction' needs use_flow_sigmas=True in the config")
    if not flow and not betas:
        raise InputError(
            "from_config: the config describes no path; tables need beta_start or trained_betas, flow models need "
            "shift, use_dynamic_shifting or use_flow_sigmas"
        )
    return "flow" if flow else "table"


def asked_for(name: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that differ from a class's defaults, but for those of its method.

    Args:
        name: The class.
        fields: The fields.
    """
    defaults = {k: p.default for k, p in parameters_of(name).items()}
    wanted = {k: v for k, v in fields.items() if k not in defaults or v != defaults[k]}
    return {k: v for k, v in wanted.items() if FIELDS.get(k) != "method" or k == "variance_type"}


def refuse_other_paths(fields: Mapping[str, Any]) -> None:
    """Refuse fields that put a model of a known class on another path.

    Raises:
        InputError: There is such a field.
    """
    if fields.get("timestep_type", "discrete") != "discrete" and fields.get("prediction_type") == "v_prediction":
        raise InputError(
            f"timestep_type: {fields['timestep_type']!r} gives the network log(sigma) / 4 for a time (as Stable Video "
            "Diffusion does), which a table of timesteps cannot; keep the pipeline's own scheduler"
        )
    if fields.get("invert_sigmas"):
        raise InputError(
            "invert_sigmas: True turns the time of a flow model round (as Mochi does); keep the pipeline's own "
            "scheduler"
        )
    if fields.get("scale_factors"):
        raise InputError("scale_factors: changes the size of the latents between steps; keep the pipeline's scheduler")


def special_path(scheduler: Any) -> tuple[str, dict[str, float]] | None:
    """A path that a pipeline's own call follows and our schedulers do not, and its numbers.

    They are "edm" (Cosmos 2: x0 + sigma eps), "continuous" (Stable Video Diffusion: the network's time is
    log(sigma) / 4), "arctangent" (Stable Audio: it is 2 arctan(sigma) / pi), "trigonometric" (SANA-Sprint) and
    "inverted" (Mochi, LongCat: the network's time grows towards the data).

    Args:
        scheduler: The scheduler of the pipeline.

    Returns:
        The name and the numbers; None for other paths.
    """
    name, config = type(scheduler).__name__, scheduler.config
    if name == "SCMScheduler" and config["prediction_type"] == "trigflow":
        return "trigonometric", {"sigma_data": float(config["sigma_data"])}
    if name in ("FlowMatchEulerDiscreteScheduler", "UniPCMultistepScheduler") and config.get("sigma_data"):
        return "edm", {k: float(config[k]) for k in ("sigma_min", "sigma_max")}
    of_v = config.get("prediction_type") == "v_prediction"
    if name == "EulerDiscreteScheduler" and config["timestep_type"] == "continuous" and of_v:
        return "continuous", {k: float(config[k] or v) for k, v in (("sigma_min", 0.002), ("sigma_max", 700.0))}
    if name == "CosineDPMSolverMultistepScheduler" and of_v and config["sigma_data"] == 1.0:
        return "arctangent", {k: float(config[k]) for k in ("sigma_min", "sigma_max")}
    if name == "FlowMatchEulerDiscreteScheduler" and config["invert_sigmas"]:
        return "inverted", {"scale": float(config["num_train_timesteps"]), "shift": shift_of(config)}
    return None


def shift_of_mu(fields: Mapping[str, Any], mu: float) -> float:
    """The shift of a flow's time by the `mu` that a pipeline has handed over.

    Args:
        fields: The config's fields.
        mu: The number.
    """
    return math.exp(mu) if fields.get("time_shift_type", "exponential") == "exponential" else mu


def shift_of(fields: Mapping[str, Any]) -> float:
    """The shift of a flow's time under its two names, 1 where it depends on the size of the image."""
    if fields.get("use_dynamic_shifting"):
        return 1.0
    return float(fields.get("flow_shift") or fields.get("shift") or 1.0)


def dynamic_mu(fields: Mapping[str, Any], tokens: int) -> float | None:
    """The `mu` that pipelines compute from the size of an image; None where the config asks for none.

    Args:
        fields: The config's fields.
        tokens: The length of the image's sequence in the network.
    """
    if not fields.get("use_dynamic_shifting"):
        return None
    low, high = fields.get("base_image_seq_len", 256), fields.get("max_image_seq_len", 4096)
    least, most = fields.get("base_shift", 0.5), fields.get("max_shift", 1.15)
    return least + (most - least) * (tokens - low) / (high - low)


def dynamic_shift(fields: Mapping[str, Any], tokens: int) -> float | None:
    """That `mu` as a factor, the shift of a flow's time.

    Args:
        fields: The config's fields.
        tokens: The length of the image's sequence in the network.
    """
    mu = dynamic_mu(fields, tokens)
    return None if mu is None else shift_of_mu(fields, mu)


def clip_of(fields: Mapping[str, Any], name: str | None) -> Clip | None:
    """The bounds on the estimate of the data that a config asks for, None for none.

    Args:
        fields: The config's fields.
        name: The class that wrote it; DDIM's and its relatives keep the network's estimate of the noise.
    """
    keeps = name is not None and name.startswith("DDIM")
    if fields.get("thresholding"):
        limit, quantile = fields.get("sample_max_value", 1.0), fields.get("dynamic_thresholding_ratio", 0.995)
        return Clip(float(limit), float(quantile), keeps_noise=keeps)
    if fields.get("clip_sample"):
        return Clip(float(fields.get("clip_sample_range", 1.0)), keeps_noise=keeps)
    return None


def prediction_of(fields: Mapping[str, Any]) -> PredictionType:
    """What the network over a table predicts.

    Raises:
        InputError: It is not known.
    """
    match fields.get("prediction_type", "epsilon"):
        case "epsilon" | "sample" | "v_prediction" as kind:
            return kind
        case other:
            raise InputError(
                f"prediction_type: got {other!r}, expected 'epsilon', 'sample' or 'v_prediction'; "
                "flow models take SteadyFlowScheduler"
            )


DEFAULTS: dict[str, Any] = {
    "snr_shift_scale": 1.0, "rescale_betas_zero_snr": False, "timestep_type": "discrete", "trained_betas": None,
    "shift_terminal": None, "sigma_min": None, "sigma_max": None, "invert_sigmas": False,
    "timestep_spacing": "leading", "steps_offset": 0, "lambda_min_clipped": -math.inf, "interpolation_type": "linear",
    "use_flow_sigmas": False, "use_dynamic_shifting": False, "time_shift_type": "exponential", "flow_shift": 1.0,
    "final_sigmas_type": "zero", "prediction_type": "epsilon", **dict.fromkeys(PLACEMENTS, False),
}  # fmt: skip
"""Values of fields that ask for nothing."""


def network_fields(network: Any) -> dict[str, Any]:
    """What the config of a network says of what it is given; None for what it does not say."""
    return {k: getattr(network.config, k, None) for k in NETWORK_FIELDS}


def vae_fields(vae: Any) -> dict[str, Any]:
    """What the config of a VAE says of the latents; None for what it does not say."""
    return {k: getattr(vae.config, k, None) for k in VAE_FIELDS}


def pipeline_fields(pipe: Any) -> dict[str, Any]:
    """What the config of a pipeline says of its latents; None for what it does not say."""
    return {k: getattr(pipe.config, k, None) for k in PIPELINE_FIELDS}


def settings_of(part: Any) -> dict[str, Any]:
    """All that the config of a part of a pipeline says, such as a guider's; nothing of nothing."""
    return dict(getattr(part, "config", None) or {})


def lays_flow_sigmas(scheduler: Any) -> bool:
    """Whether pipelines of flow models leave the sigmas to a scheduler because its config says so."""
    return bool(getattr(scheduler.config, "use_flow_sigmas", False))


def fields_of(scheduler: Any, name: str) -> dict[str, Any]:
    """The fields of a scheduler's config as it acts on them, diffusers' or ours.

    Args:
        scheduler: The scheduler.
        name: The name of its class.

    Raises:
        InputError: They put the model on a path that cannot be followed, or a field is not known.
    """
    config = dict(scheduler.config)
    if name in SOURCES or name in REFUSED:
        fields = complete(config, class_of({**config, "_class_name": name}))
    else:
        fields = {**config, **(config.get("follows") or {})}
    refuse_other_paths(fields)
    return fields


def time_scale(fields: Mapping[str, Any], kind: Kind) -> float:
    """The network's time at the path's time 1."""
    return 1.0 if kind == "table" else float(fields.get("num_train_timesteps", 1000))


def learned_variance(fields: Mapping[str, Any]) -> bool:
    """Whether the network may return a variance beside its prediction."""
    return fields.get("variance_type") in ("learned", "learned_range")


def check_boundary(fields: Mapping[str, Any], name: str) -> None:
    """Check that the boundary condition of LCM's models may be left out, as it is negligible at its usual scale.

    Args:
        fields: The config's fields.
        name: The class.

    Raises:
        InputError: Its scale is another.
    """
    if (boundary_of(fields, name) or 10.0) < 10.0:
        raise InputError(
            f"timestep_scaling: got {fields['timestep_scaling']}; below 10 a model over the pipeline would have to "
            "apply LCM's boundary condition, which only our scheduler does"
        )


def boundary_of(fields: Mapping[str, Any], name: str) -> float | None:
    """The scale of the time in the boundary condition of LCM's models; None for others."""
    return float(fields.get("timestep_scaling", 10.0)) if name == "LCMScheduler" else None


def check_method(fields: Mapping[str, Any], solver: str, calls: int | None) -> None:
    """Check that a solver can follow what a config says of the steps.

    Args:
        fields: The config's fields.
        solver: The solver's name.
        calls: Its network calls a step.

    Raises:
        InputError: It cannot.
    """
    if fields.get("interpolation_type") == "log_linear" and calls != 1:
        raise InputError(
            "interpolation_type: the timesteps of 'log_linear' do not belong to its noise levels, so that only a "
            f"solver of one call a step can follow it; {solver!r} calls the network in between"
        )
    variance = fields.get("variance_type")
    if variance not in (None, "fixed_small", "fixed_small_log") and solver == "ddpm":
        raise InputError(
            f"variance_type: {variance!r} is not what solver 'ddpm' draws, which is 'fixed_small'; take a "
            "deterministic solver, or keep diffusers' DDPMScheduler"
        )


def under_one_shift(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields with the shift of a flow's time under one name, `shift`."""
    if "flow_shift" not in fields:
        return dict(fields)
    return {"shift": fields["flow_shift"], **{k: v for k, v in fields.items() if k not in ("flow_shift", "shift")}}


def check_changes(changes: Mapping[str, Any], kind: Kind, name: str | None) -> None:
    """Check that what a user changes in a config can act.

    Args:
        changes: The fields that are given beside the config.
        kind: The kind of path.
        name: The class whose plan is followed.

    Raises:
        InputError: A field cannot.
    """
    for field, value in changes.items():
        role = FIELDS.get(field)
        of_tables = field in ("set_alpha_to_one", "beta_start", "beta_end", "beta_schedule", "trained_betas")
        other_prediction = field == "prediction_type" and value != "flow_prediction"
        if role == "method" and field != "variance_type":
            raise InputError(
                f"{field}: is an option of the method that `solver` replaces; name a solver, and its options as "
                "solver_options={...}"
            )
        if field == "timestep_scaling" and name != "LCMScheduler":
            raise InputError(f"timestep_scaling: only LCM's models have it, this is the config of {name}")
        if (kind == "flow" and (of_tables or other_prediction)) or (kind == "table" and field == "shift"):
            whose = "tables of betas" if kind == "flow" else "flow models"
            raise InputError(f"{field}: got {value!r}, which only {whose} have")
