"""Networks in ONNX files as models, computed by onnxruntime.

A file says nothing of the path or of what its network predicts: both are given, or read from metadata that
`describe_onnx` wrote. Inputs and outputs pass through the main memory, and there are no derivatives.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from .._internal import files, strict_json
from .._internal.imports import needing
from ..denoisers.base import Condition, Denoiser
from ..errors import MALFORMED, CorruptFileError, InputError
from ..prediction import PredictionType
from ..schedules import Schedule, from_spec

KEY = "steadyflow"
"""The key of our entry in a file's metadata."""
_STATES = ("x", "x_t", "sample", "latents", "latent", "state", "input", "noisy")
_TIMES = ("t", "time", "timestep", "timesteps", "sigma", "s", "noise_level")
_TYPES = {
    "tensor(float)": torch.float32,
    "tensor(double)": torch.float64,
    "tensor(float16)": torch.float16,
    "tensor(int64)": torch.int64,
    "tensor(int32)": torch.int32,
    "tensor(bool)": torch.bool,
}
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class OnnxNet(nn.Module):
    """A session of onnxruntime as the network of a model.

    Args:
        session: The session.
        roles: The names of its inputs for "x", "time", and of its conditions under their own names.
        output: The name of the output.
        digest: The digest of the file, by which runs tell networks apart.
        round_time: Whether times are rounded for an input of whole numbers.
    """

    def __init__(self, session: Any, roles: Mapping[str, str], output: str, digest: bytes, round_time: bool):
        super().__init__()
        self.session, self.output, self.round_time = session, output, round_time
        self.x, self.time = roles["x"], roles["time"]
        self.inputs = {entry.name: entry for entry in session.get_inputs()}
        self.conditions = tuple(name for name in self.inputs if name not in (self.x, self.time))
        if not self.conditions:
            self.classes = 0  # a condition is refused by the model
        first = self.inputs[self.x].shape[0]
        self.batch = first if isinstance(first, int) else None
        self.register_buffer("digest", torch.tensor(list(digest), dtype=torch.uint8))

    def forward(self, x: Tensor, time: Tensor, condition: Any = None) -> Tensor:
        """Return the output, of x's shape; `time` has shape (B,)."""
        tangent = forward_ad.unpack_dual(x).tangent
        if tangent is not None or (torch.is_grad_enabled() and x.requires_grad):
            raise InputError(
                "gradients: a network in an ONNX file has none; likelihoods, Jacobians and corrections that need them "
                "take the torch network"
            )
        feeds = {self.x: x, self.time: self._times(time), **self._conditions(condition)}
        parts = [self._run(part, len(x)) for part in self._batches(feeds, len(x))]
        return torch.cat(parts)[: len(x)].to(x.device)

    def _times(self, time: Tensor) -> Tensor:
        """The times as the input takes them."""
        entry = self.inputs[self.time]
        if "int" in entry.type:
            whole = time.round()
            if not self.round_time and not torch.equal(whole, time):
                wrong = float(time[whole != time][0])
                raise InputError(
                    f"time: the input {entry.name!r} takes whole numbers, but a solver asks at {wrong:g}; give a grid "
                    "of whole times and a solver of one evaluation per step, or round_time=True"
                )
            time = whole
        if not entry.shape and len(time) > 1:
            if not bool((time == time[0]).all()):
                raise InputError(f"time: the input {entry.name!r} takes one time for the batch, but there are several")
            time = time[:1]
        return time

    def _conditions(self, condition: Any) -> dict[str, Tensor]:
        """The conditions by the names of their inputs."""
        if condition is None:
            condition = {}
        elif not isinstance(condition, Mapping):
            if len(self.conditions) != 1:
                raise InputError(f"condition: got one value for the inputs {', '.join(self.conditions)}; give a dict")
            condition = {self.conditions[0]: condition}
        if set(condition) != set(self.conditions):
            raise InputError(
                f"condition: got {', '.join(sorted(condition)) or 'none'}, but the network has the inputs "
                f"{', '.join(self.conditions) or 'of the state and the time alone'}"
            )
        for name, value in condition.items():
            if value.is_floating_point() and not _TYPES[self.inputs[name].type].is_floating_point:
                raise InputError(f"condition: the input {name!r} takes whole numbers, got {value.dtype}")
        return dict(condition)

    def _batches(self, feeds: Mapping[str, Tensor], n: int) -> Iterator[dict[str, Tensor]]:
        """The inputs in batches of the size that the file fixes, the last one filled up with its own first row."""
        size = self.batch or n
        for start in range(0, n, size):
            part = {}
            for name, value in feeds.items():
                if name == self.time and len(value) == 1 < n:
                    part[name] = value
                    continue
                rows = value[start : start + size]
                missing = size - len(rows)
                part[name] = torch.cat([rows, rows[:1].expand(missing, *rows.shape[1:])]) if missing else rows
            yield part

    def _run(self, feeds: Mapping[str, Tensor], n: int) -> Tensor:
        """One run of the session."""
        arrays = {}
        for name, value in feeds.items():
            entry = self.inputs[name]
            value = value.detach().to(device="cpu", dtype=_TYPES[entry.type])
            arrays[name] = (value if entry.shape or name != self.time else value[0]).numpy()
        try:
            return torch.from_numpy(self.session.run([self.output], arrays)[0])
        except Exception as error:  # onnxruntime has no base class of its own
            raise InputError(f"network: onnxruntime refused {n} samples ({error})") from error


def from_onnx(
    path: str | Path,
    schedule: Schedule | None = None,
    *,
    prediction: PredictionType | None = None,
    shape: tuple[int, ...] | None = None,
    inputs: Mapping[str, str] | None = None,
    output: str | None = None,
    time_scale: float | None = None,
    round_time: bool = False,
    null: Condition = None,
    classes: int | None = None,
    device: str = "cpu",
    providers: Sequence[Any] | None = None,
) -> Denoiser:
    """Create a model over a network in an ONNX file.

    The file's network is net(x, time) or net(x, time, condition, ...). What `describe_onnx` wrote into it is
    the default of the arguments from `schedule` to `classes`; without that the schedule and the prediction must be
    given.

    Args:
        path: The file.
        schedule: The path.
        prediction: What the network predicts, as for `Denoiser`.
        shape: The shape of one sample, without the batch; by default that of the file, where it fixes it.
        inputs: The names of the inputs, {"x": name, "time": name}; by default found by their usual names (x, sample,
            latents, ...; t, time, timestep, sigma, ...), then by their shapes. All others are conditions, which
            `with_condition` sets: one value where there is one of them, else a dict by their names.
        output: The name of the output, where there are several.
        time_scale: 1000 for networks that expect their time in [0, 1000) on a schedule over [0, 1]; 1 by default.
        round_time: Whether to round times for an input of whole numbers; without it, other times are refused.
        null: The condition that stands for "none", for guidance.
        classes: The number of labels, if the condition is a label.
        device: "cpu" or "cuda", on which onnxruntime computes.
        providers: Its execution providers instead, by name, or (name, options).

    Returns:
        The model. A batch size that the file fixes is kept by cutting and filling batches. Gradients are refused where
        one is asked for.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        FileNotFoundError: There is no such file.
        CorruptFileError: The file is no network that onnxruntime can load, or its metadata is damaged.
        InputError: An input or output cannot be told or does not exist, the schedule or the prediction is missing, or
            the device or a provider is not available.
    """
    with needing("onnxruntime", "onnxruntime", extra="onnx", purpose="from_onnx"):
        import onnxruntime
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    wanted = _providers(onnxruntime.get_available_providers(), device, providers)
    try:
        session = onnxruntime.InferenceSession(str(path), providers=wanted)
    except Exception as error:  # onnxruntime has no base class of its own
        raise CorruptFileError(f"{path}: no network that onnxruntime can load ({error})") from error
    outputs = [entry.name for entry in session.get_outputs()]
    if output is None and len(outputs) > 1:
        raise InputError(f"output: the network has {', '.join(outputs)}; give the name of one")
    if output is not None and output not in outputs:
        raise InputError(f"output: got {output!r}, but the network has {', '.join(outputs)}")
    output = outputs[0] if output is None else output
    known = _metadata(session, path)
    if schedule is None and "schedule" in known:
        schedule = from_spec(known["schedule"])
    prediction = known.get("prediction") if prediction is None else prediction
    if schedule is None or prediction is None:
        missing = "schedule" if schedule is None else "prediction"
        raise InputError(f"{missing}: the file does not say it; give it, or write it with describe_onnx")
    roles = _roles(session, output, inputs or {})
    entries = {entry.name: entry for entry in session.get_inputs()}
    unknown = [f"{name} ({entry.type})" for name, entry in entries.items() if entry.type not in _TYPES]
    if unknown or not _TYPES[entries[roles["x"]].type].is_floating_point:
        listed = ", ".join(unknown) or f"{roles['x']} ({entries[roles['x']].type})"
        raise InputError(f"inputs: {listed} has a type that is not known here, or no floating-point one for x")
    sides = entries[roles["x"]].shape[1:]
    if shape is None:
        shape = tuple(known["shape"]) if known.get("shape") else None
    if shape is None and all(isinstance(side, int) for side in sides):
        shape = tuple(sides)
    return Denoiser(
        OnnxNet(session, roles, output, _digest(path), round_time),
        schedule,
        prediction=prediction,
        shape=shape,
        null=known.get("null") if null is None else null,
        time_scale=float(known.get("time_scale", 1.0) if time_scale is None else time_scale),
        dtype=_TYPES[entries[roles["x"]].type],
        classes=known.get("classes") if classes is None else classes,
        name=path.stem,
    )


def describe_onnx(path: str | Path, model: Denoiser) -> None:
    """Write what `from_onnx` needs to know into an exported file: path, prediction, shape, time scale and classes.

    Args:
        path: The file of the model's network, as torch.onnx.export(model.net, ...) wrote it.
        model: The model.

    Raises:
        MissingExtraError: onnx is not installed.
        FileNotFoundError: There is no such file.
        InputError: The model has smoothing or bounds on its estimates, which are not part of its network.
    """
    with needing("onnx", "onnx", extra="onnx", purpose="describe_onnx"):
        import onnx
    for option in ("smoothing", "clip", "moments"):
        if getattr(model, option) is not None:
            raise InputError(f"{option}: the file cannot hold it; describe the model without")
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    about = {
        "schedule": model.schedule.spec(),
        "prediction": model.prediction,
        "shape": model.shape,
        "time_scale": model.time_scale,
        "classes": model.classes,
        "null": model.null if isinstance(model.null, int) else None,
    }
    file = onnx.load(str(path), load_external_data=False)
    onnx.helper.set_model_props(
        file, {**{entry.key: entry.value for entry in file.metadata_props}, KEY: strict_json.dumps(about)}
    )
    with files.replacing(path) as part:
        part.write_bytes(file.SerializeToString())


def _digest(path: Path) -> bytes:
    """The digest of a file and of those beside it that it names, which hold its weights."""
    text = path.read_bytes()
    found = hashlib.sha256(text)
    for beside in sorted(path.parent.iterdir()):
        if beside != path and beside.is_file() and beside.name.encode() in text:
            with beside.open("rb") as file:
                found.update(hashlib.file_digest(file, "sha256").digest())
    return found.digest()


def _metadata(session: Any, path: Path) -> dict[str, Any]:
    """What `describe_onnx` wrote; empty where it did not."""
    text = session.get_modelmeta().custom_metadata_map.get(KEY)
    if text is None:
        return {}
    try:
        known = strict_json.loads(text)
        return dict(known)
    except MALFORMED as error:
        raise CorruptFileError(f"{path}: the metadata {KEY!r} is damaged ({error})") from error


def _providers(available: Sequence[str], device: str, providers: Sequence[Any] | None) -> list[Any]:
    """The execution providers, checked: onnxruntime itself passes over those that it does not have."""
    if providers is None:
        if device not in _PROVIDERS:
            raise InputError(f"device: got {device!r}, expected {' or '.join(_PROVIDERS)}; else give providers")
        providers = [_PROVIDERS[device]]
    elif device != "cpu":
        raise InputError(f"device: got {device!r} beside providers, which say it themselves")
    for provider in providers:
        name = provider if isinstance(provider, str) else provider[0]
        if name not in available:
            raise InputError(f"providers: {name} is not available; this onnxruntime has {', '.join(available)}")
    return list(providers)


def _roles(session: Any, output: str, given: Mapping[str, str]) -> dict[str, str]:
    """The names of the inputs for x and the time."""
    entries = {entry.name: entry for entry in session.get_inputs()}
    unknown = set(given) - {"x", "time"}
    if unknown:
        raise InputError(f"inputs: got {', '.join(sorted(unknown))}, expected the names for 'x' and 'time'")
    for role, name in given.items():
        if name not in entries:
            raise InputError(f"inputs: {name!r} for {role!r} does not exist; the network has {', '.join(entries)}")
    rank = len(next(entry.shape for entry in session.get_outputs() if entry.name == output))
    roles = dict(given)
    shaped = {
        "x": [n for n, e in entries.items() if len(e.shape) == rank > 1 and "int" not in e.type],
        "time": [n for n, e in entries.items() if len(e.shape) <= 1],
    }
    for role, usual in (("x", _STATES), ("time", _TIMES)):
        if role in roles:
            continue
        free = [name for name in entries if name not in roles.values()]
        named = [name for word in usual for name in free if name.lower() == word]
        fitting = named[:1] or [name for name in shaped[role] if name in free]
        if len(fitting) != 1:
            listed = ", ".join(f"{name} {entry.shape}" for name, entry in entries.items())
            raise InputError(f"inputs: cannot tell which is {role!r} among {listed}; give inputs={{{role!r}: name}}")
        roles[role] = fitting[0]
    if roles["x"] == roles["time"]:
        raise InputError(f"inputs: {roles['x']!r} is given as 'x' and as 'time'")
    return roles
