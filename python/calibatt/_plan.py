"""Plans: opened, described, and compiled from what a calibration measured."""

from __future__ import annotations

import ctypes
import json
import os
import warnings
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple, Union

from . import _errors, _library

PathLike = Union[str, "os.PathLike[str]"]
ProgressCallback = Callable[[str, int, int], None]  #: (stage, done, total)


class Plan:
    """A plan file (docs/plan_format.md): which blocks of self-attention are computed, for each step, layer and head.

    >>> plan = calibatt.Plan("plan.safetensors")
    >>> plan.density, plan.grid
    (0.375, (17, 16, 16))

    Masks stay in the file until a layer is asked for. Raises NotFound, Unreadable, FormatError.
    """

    def __init__(self, path: PathLike):
        self.path = os.fsdecode(path)
        self._library = _library.loaded()
        handle = ctypes.c_void_p()
        self._library.plan_open(_library.encoded(self.path), ctypes.byref(handle))
        self._handle = handle
        #: Everything that the file says of itself; the names are those of calibatt_plan_json (include/calibatt/c_api.h).
        self.facts: Dict[str, Any] = json.loads(self._library.plan_json(handle))

    def __del__(self) -> None:
        handle, self._handle = getattr(self, "_handle", None), None
        if handle:
            self._library.plan_close(handle)

    def __copy__(self) -> Plan:  # plans do not change; the library's object is one plan's alone
        return self

    def __deepcopy__(self, _: Any) -> Plan:
        return self

    def __reduce__(self) -> Tuple[Any, ...]:
        return Plan, (os.path.abspath(self.path),)

    def __repr__(self) -> str:
        return f"<calibatt.Plan {self.path!r}: density {self.density:.3f}>"

    def describe(self) -> str:
        """The plan in a few lines for people."""
        return self._library.plan_text(self._handle).decode("utf-8")

    @property
    def density(self) -> float:
        """Computed (query, key) pairs of tokens over all pairs, 0 to 1."""
        return self.facts["density"]

    @property
    def density_map(self) -> List[List[float]]:
        """[steps][layers] densities."""
        return self.facts["density_map"]

    @property
    def grid(self) -> Tuple[int, int, int]:
        """Latent frames, rows and columns in tokens."""
        return tuple(self.facts["grid"])  # type: ignore[return-value]

    @property
    def sigmas(self) -> List[float]:
        """[steps] noise level of each step, from 1 (noise) to 0."""
        return self.facts["sigmas"]

    @property
    def step_transformer(self) -> List[int]:
        """[steps] which of the model's transformers denoises the step."""
        return self.facts.get("step_transformer") or [0] * len(self.sigmas)

    @property
    def step_reuse(self) -> List[str]:
        """[steps] how each step gets its prediction: "forward", or from earlier steps' by "hold", "residual" or "linear"."""
        return self.facts["step_reuse"] or ["forward"] * len(self.sigmas)

    @property
    def eight_bits(self) -> List[str]:
        """[steps] which parts the plan has in 8 bits: "none", "attention", "layers" or "attention+layers"; empty: it does not say.
        Only the command line follows it. In a pipe everything is computed in the model's own types."""
        return self.facts["eight_bits"]

    @property
    def reuses_steps(self) -> bool:
        """Whether some steps run no forward."""
        return any(way != "forward" for way in self.step_reuse)

    @property
    def num_layers(self) -> int:
        return self.facts["layers"]

    @property
    def num_heads(self) -> int:
        return self.facts["heads"]

    @property
    def head_dim(self) -> int:
        return self.facts["head_dim"]

    @property
    def video(self) -> Tuple[int, int, int]:
        """Video frames, height and width in pixels."""
        video = self.facts["video"]
        return video["frames"], video["height"], video["width"]

    @property
    def transformers(self) -> List[Dict[str, str]]:
        """The weights that the plan was made for: [{"name", "fingerprint"}]. An empty fingerprint is not known."""
        return self.facts["transformers"]


def nearest_transformers(plan: Any, sigmas: Sequence[float]) -> Tuple[int, ...]:
    """Which of the plan's transformers denoises each noise level, by the plan's step of the nearest one."""
    nearest = (min(range(len(plan.sigmas)), key=lambda step: abs(plan.sigmas[step] - sigma)) for sigma in sigmas)
    return tuple(plan.step_transformer[step] for step in nearest)


def setting_list(settings: Mapping[str, Any]) -> Tuple[Any, int]:
    """Settings as the command line spells them: token_order="raster" → --token-order raster. None is left out."""
    for name in settings:
        if not isinstance(name, str):
            raise _errors.UsageError(f"{name!r} is no name of a setting; they are texts, as in settings={{'token_order': 'raster'}}")
    given = [(name.replace("_", "-"), value) for name, value in settings.items() if value is not None]
    array = (_library.Setting * max(1, len(given)))()
    for entry, (name, value) in zip(array, given):
        entry.name, entry.value = _library.encoded(name), _library.encoded(_setting_text(value))
    return array, len(given)


def require_settings(settings: Mapping[str, Any]) -> None:
    """Raises UsageError for those that no calibration could have, whatever its model."""
    _library.loaded().settings_check(*setting_list(settings))


def _setting_text(value: Any) -> str:
    if isinstance(value, bool):
        return "1" if value else "0"
    return repr(value) if isinstance(value, float) else str(value)


def compile(  # noqa: A001 - the name that people expect
    profile: PathLike,
    output: PathLike,
    density: Optional[float] = None,
    progress: Optional[ProgressCallback] = None,
    *,
    weights_dtype: Any = "auto",
    keep_layers: Optional[str] = None,
    attention_dtype: Any = "auto",
    **settings: Any,
) -> Plan:
    """Makes another plan of what a calibration measured, in seconds, without the model.

    Args:
        profile: the folder that `calibrate` or `calibatt calibrate` filled; `PLAN.profile` if nothing else was said. One that holds the
            prompts of several calibrations is refused: `calibrate` says which of them a plan is made of, and measures none again.
        output: the plan file to write. It appears complete or not at all.
        density: share of attention to compute, 0 to 1; None: as the command line does.
        progress: called with (stage, done, total); what it raises ends the work and reaches you. None: a bar by tqdm.
        weights_dtype, keep_layers, attention_dtype: as `calibatt calibrate` has them: with speedup or psnr the plan may have linear layers
            ("fp8" or "int8", but for those of keep_layers) and self-attention ("fp8") in 8 bits. `calibatt calibrate` has to have measured what
            these do; which steps have them is chosen for the GPU 0 that is here: on one that is no Hopper, and without one, none has. For plans that
            run elsewhere eight_bit_layers_from and eight_bit_attention_from tell the steps. Pipes compute nothing in 8 bits; the command line does.
        settings: the flags of `calibatt calibrate --help` that say how a plan is compiled, with _ for -: budget="energy".

    Returns the plan. Warns of settings that change nothing, and of a plan that is predicted to make another video. Raises UsageError naming
    a setting that cannot be, NotFound, FormatError, WriteError.
    """
    library = _library.loaded()
    eight_bits = {"weights_dtype": weights_dtype, "keep_layers": keep_layers, "attention_dtype": attention_dtype}
    array, count = setting_list({"density": density, **eight_bits, **settings})

    def run(path: bytes, tell: Any) -> str:
        return library.text(lambda text: library.compile(os.fsencode(profile), path, array, count, tell, None, text))

    return compiled(output, progress, run)


def merge(folders: Sequence[PathLike], output: PathLike) -> int:
    """Joins profile folders of one calibration whose prompts were run by several processes (prompt_range of `calibrate`).

    Args:
        folders: each with other prompts; together they have all of them.
        output: the folder to make. Files are linked, or copied to another file system.

    Returns the number of prompts. Raises Mismatch naming both values where folders were measured differently, UsageError naming prompts that
    are missing or there twice, or when `output` already holds prompts, NotFound, FormatError, WriteError.
    """
    if isinstance(folders, (str, bytes, os.PathLike)) or not folders:
        raise _errors.UsageError(f"folders is {folders!r}, and is to be a list of profile folders, one or more")
    listed = [os.fsencode(folder) for folder in folders]
    prompts = ctypes.c_int32()
    _library.loaded().merge_profiles((ctypes.c_char_p * len(listed))(*listed), len(listed), os.fsencode(output), ctypes.byref(prompts))
    return prompts.value


def compiled(output: PathLike, progress: Optional[ProgressCallback], run: Callable[[bytes, Any], str]) -> Plan:
    """The plan that run(path, C progress callback) writes; it gives the JSON of calibatt_compile."""
    raised: List[BaseException] = []
    bar = None if progress else _Bar()

    def tell(_: Any, stage: bytes, done: int, total: int) -> int:
        try:
            (progress or bar)(stage.decode(), done, total)  # type: ignore[misc]
        except BaseException as error:  # noqa: BLE001 - nothing may pass through the C code
            raised.append(error)
            return 1
        return 0

    try:
        facts = json.loads(run(os.fsencode(output), _library.Progress(tell)))
    except _errors.Cancelled:
        raise raised[0] if raised else _errors.Cancelled("stopped") from None
    finally:
        if bar:
            bar.close()
    for warning in facts["warnings"]:
        warnings.warn(_library.in_terms_of_python(warning), stacklevel=3)
    return Plan(output)


class _Bar:
    """Progress of the compiler by tqdm, where it is installed."""

    def __init__(self) -> None:
        self._bar: Any = None
        try:
            from tqdm.auto import tqdm
        except ImportError:
            return
        self._bar = tqdm(total=1, desc="compile", leave=False)

    def __call__(self, stage: str, done: int, total: int) -> None:
        if self._bar is not None:
            self._bar.total = total
            self._bar.update(done - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
