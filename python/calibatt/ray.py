"""Many prompts, or one calibration, over the machines of a Ray cluster: pip install 'calibatt[ray]'.

>>> from calibatt import ray as cluster
>>> make = cluster.Program("/models/Wan2.1-T2V-14B-Diffusers", plan="/plans/wan14b.safetensors")
>>> videos = cluster.generate(make, prompts, actors=4, num_gpus=1)          # bytes of MP4 files, in the order of the prompts
>>> plan = cluster.calibrate(cluster.Program("/models/…"), prompts, "/shared/plan.safetensors", actors=4, num_gpus=1, density=0.375)

What an actor runs is a factory's choice: `Program` is the command line's program, `Pipe` a pipe of diffusers, and any function will do that gives an
object with `generate(prompt, seed)`. docs/clusters.md is the guide, also for Slurm and Kubernetes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple, Union

try:
    import ray
except ModuleNotFoundError as missing:
    if missing.name != "ray":
        raise
    raise ImportError("calibatt.ray needs Ray: pip install 'calibatt[ray]'") from None

from . import _arguments, _errors
from ._cluster import Pool, connect
from ._plan import PathLike, Plan, merge, require_settings
from ._program import Program

__all__ = ["Pipe", "Program", "calibrate", "deployment", "generate"]

Factory = Callable[[], Any]
#: A calibration's first prompts have no masks of earlier ones by which errors could be measured, so ranges are not shorter.
LEAST_RANGE = 3


@dataclass(frozen=True)
class Pipe:
    """A pipe of diffusers, as `load` gives it in each actor.

    >>> def load():
    ...     return WanPipeline.from_pretrained("/models/Wan2.1-T2V-14B-Diffusers", dtype=torch.bfloat16).to("cuda")
    >>> make = Pipe(load, plan="/plans/wan14b.safetensors", call=dict(height=720, width=1280, num_frames=81))

    Args:
        load: called without arguments, once in each actor.
        plan: what is applied to the pipe (`calibatt.apply`); None: nothing.
        call: the pipe's own arguments, for every prompt.
    """

    load: Callable[[], Any]
    plan: Optional[PathLike] = None
    call: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self) -> PipeWorker:
        return PipeWorker(self)


class PipeWorker:
    """Makes videos, and calibrates, by the pipe that it holds."""

    def __init__(self, description: Pipe):
        from . import apply

        self._call, self._pipe = dict(description.call), description.load()
        if description.plan is not None:
            apply(self._pipe, description.plan)

    def generate(self, prompt: str, seed: int) -> Any:
        """One video: numpy array [frames, height, width, 3] of 8 bits. Raises what the pipe raises."""
        import numpy as np
        import torch

        frames = self._pipe(prompt=prompt, generator=torch.Generator("cpu").manual_seed(seed), output_type="np", **self._call).frames[0]
        return np.round(frames * 255).astype(np.uint8)

    def calibrate(self, prompts: Sequence[str], seed: int, profile: str, prompt_range: Optional[Tuple[int, int]], output: Optional[str],
                  settings: Mapping[str, Any]) -> None:  # fmt: skip
        """As ProgramWorker.calibrate."""
        from . import calibrate as calibrate_pipe

        calibrate_pipe(self._pipe, prompts, output or profile, profile=profile, seed=seed, prompt_range=prompt_range, settings=settings, **self._call)


def generate(
    factory: Factory,
    prompts: Sequence[str],
    *,
    seed: Union[int, Sequence[int]] = 0,
    actors: int = 1,
    num_cpus: float = 1,
    num_gpus: float = 0,
    ray_options: Mapping[str, Any] = {},
    retries: int = 3,
    start_timeout_s: float = 1800,
    on_result: Optional[Callable[[int, Any], None]] = None,
) -> List[Any]:
    """Makes a video of each prompt on the cluster that `ray.init` found, or on this machine. Where an actor's process or machine is lost,
    the prompt that it was at is run again by another actor, and a new one takes its place; no other prompt is.

    Args:
        factory: called without arguments in each actor, once; gives an object with generate(prompt, seed) → result: `Program`, `Pipe`, or a
            function of yours. It and the results travel by pickle.
        prompts: of the videos, one or more.
        seed: of the noise of all videos, as `calibatt generate --prompts` has it, or a list with one for each prompt; from 0, below 2^64.
        actors: how many run at a time, from 1. Those that the cluster has no room for start when it has.
        num_cpus, num_gpus: of each actor, which are of one machine: num_gpus is a group of GPUs.
        ray_options: more options of ray.remote: {"resources": {"big": 1}, "runtime_env": {…}}.
        retries: how often a prompt is tried again after its actor was lost or its run failed, from 0. What no machine could do otherwise
            (UsageError, NotFound, FormatError, Mismatch, Unsupported) is not tried again.
        start_timeout_s: how long there may be no actor that has started, in seconds.
        on_result: called with (index, result) in this process as soon as a result is there, in any order: to keep it on disk.

    Returns what the workers gave, in the order of the prompts. Warns (CalibattWarning) of every run that is done again. Raises what a worker
    refuses, naming the prompt; Error for a prompt that failed more than `retries` times; DeviceError when no actor starts. All actors end.
    """
    prompts = _arguments.texts(prompts)
    seeds = _arguments.seeds(seed, len(prompts))
    if on_result is not None and not callable(on_result):
        raise _errors.UsageError(f"on_result is {on_result!r}, and is to be a function of (index, result)")
    pool = _pool(factory, "generate", "prompt {}", actors, num_cpus, num_gpus, ray_options, retries, start_timeout_s)
    results: Dict[int, Any] = {}
    with _Bar("generate", "video", len(prompts)) as bar:

        def done(index: int, result: Any) -> None:
            results[index] = result
            bar.update(1)
            if on_result is not None:
                on_result(index, result)

        pool.run(list(zip(prompts, seeds)), done)
    return [results[index] for index in range(len(prompts))]


def calibrate(
    factory: Factory,
    prompts: Sequence[str],
    output: PathLike,
    density: Optional[float] = None,
    *,
    seed: int = 0,
    settings: Mapping[str, Any] = {},
    prompts_per_range: int = 4,
    actors: int = 1,
    num_cpus: float = 1,
    num_gpus: float = 0,
    ray_options: Mapping[str, Any] = {},
    retries: int = 3,
    start_timeout_s: float = 1800,
) -> Plan:
    """One calibration over a cluster. Actors measure ranges of the prompts, each into a folder of its own; then the folders are joined and a plan
    is made. Killed, or on another number of machines, the same call goes on where it was, with the same result.

    Args:
        factory: as for `generate`; what it gives has calibrate(prompts, seed, profile, prompt_range, output, settings), as `Program` (without a
            plan) and `Pipe` do.
        prompts, density, settings: as for `calibatt.calibrate`. Prompt i has the noise of seed + i.
        output: the plan file, in a folder that all machines share: parts lie beside it, in `output`.parts, and then what all measured,
            in `output`.profile. A lost machine costs the prompt that it was at.
        prompts_per_range: from 3. It, and not the number of actors, says what is measured: errors of a range's prompts are measured under masks
            of the range's earlier ones. The plan is that of `calibatt calibrate --prompt-range` for each range; with as many as there are
            prompts, that of one process.
        the others: as for `generate`, with ranges in place of prompts.

    Returns the plan. Raises as `generate`, and UsageError where a machine does not see the folder.
    """
    prompts = _arguments.texts(prompts)
    for index, prompt in enumerate(prompts):
        if not prompt.strip() or prompt.startswith("#") or len(prompt.splitlines()) != 1:
            raise _errors.UsageError(f"prompt {index}: is to be one line that is not empty and does not begin with #, as in files of prompts")
    seed, settings = _arguments.first_seed(seed, len(prompts)), _arguments.with_density(settings, density)
    require_settings(settings)
    _require_calibration(factory, settings)
    _arguments.whole("prompts_per_range", prompts_per_range, LEAST_RANGE)
    output = os.path.abspath(os.fsdecode(output))
    if os.path.splitext(output)[1].lower() != ".safetensors":
        raise _errors.UsageError(f"output {output}: the name must end in .safetensors")
    profile, parts = output + ".profile", output + ".parts"

    def pool(number: int, what: str) -> Pool:
        return _pool(_InSharedFolder(factory, parts), "calibrate", what, number, num_cpus, num_gpus, ray_options, retries, start_timeout_s)

    record, compile_ = pool(actors, "range {}"), pool(1, "the plan")
    with _parts_folder(parts):
        if not os.path.isdir(profile):
            ranges = _ranges(len(prompts), prompts_per_range)
            folders = [os.path.join(parts, f"{first:06}-{end:06}") for first, end in ranges]
            with _Bar("calibrate", "prompt", len(prompts)) as bar:
                record.run([(prompts, seed, folder, each, None, settings) for folder, each in zip(folders, ranges)],
                           lambda index, _: bar.update(ranges[index][1] - ranges[index][0]))  # fmt: skip
            joined = os.path.join(parts, "joined")
            shutil.rmtree(joined, ignore_errors=True)  # of a call that was killed
            merge(folders, joined)
            os.rename(joined, profile)
        compile_.run([(prompts, seed, profile, None, output, settings)], lambda *_: None)
    shutil.rmtree(parts, ignore_errors=True)  # what they held is linked in the profile
    return Plan(output)


def deployment(factory: Factory, *, replicas: int = 1, num_cpus: float = 1, num_gpus: float = 0, ray_options: Mapping[str, Any] = {}) -> Any:
    """The same workers behind Ray Serve: an application for `serve.run`, whose replicas make one video at a time each.

    >>> from ray import serve
    >>> serve.run(cluster.deployment(make, replicas=2, num_gpus=1), route_prefix="/videos")

    POST {"prompt": …, "seed": …} is answered by the video's bytes (video/mp4); handle.generate.remote(prompt, seed) by the worker's result.
    A request that cannot be is answered by 400 and {"error": {"message"}}, a run that fails by 500.

    Args: as for `generate`; replicas: how many, from 1.
    """
    from ray import serve

    _require_actor(factory, num_cpus, num_gpus, ray_options)
    _arguments.whole("replicas", replicas, 1)
    options = {**ray_options, "num_cpus": num_cpus, "num_gpus": num_gpus}
    return serve.deployment(Videos, name="videos", num_replicas=replicas, max_ongoing_requests=1, ray_actor_options=options).bind(factory)


class Videos:
    """What a replica is."""

    def __init__(self, factory: Factory):
        self._worker = factory()

    async def generate(self, prompt: str, seed: int = 0) -> Any:
        return await asyncio.to_thread(self._worker.generate, _arguments.texts([prompt])[0], _arguments.seeds([seed], 1)[0])

    async def __call__(self, request: Any) -> Any:
        from starlette.responses import JSONResponse, Response

        def failed(status: int, message: str) -> Any:
            return JSONResponse({"error": {"message": message}}, status_code=status)

        if request.method != "POST":
            return failed(405, "POST a JSON object with prompt and, if you like, seed")
        try:
            asked = await request.json()
        except ValueError as error:
            return failed(400, f"the body is no JSON: {error}")
        if not isinstance(asked, dict) or "prompt" not in asked or set(asked) - {"prompt", "seed"}:
            return failed(400, "the body is to be a JSON object with prompt and, if you like, seed; nothing else is read")
        try:
            video = await self.generate(**asked)
        except (_errors.UsageError, _errors.Mismatch) as error:
            return failed(400, str(error))
        except _errors.Error as error:
            return failed(500, str(error))
        if not isinstance(video, bytes):
            return failed(500, f"this deployment's worker gives {type(video).__name__}, not the bytes of a file; ask it through a handle")
        return Response(video, media_type="video/mp4")


class _InSharedFolder:
    """A factory of workers that see a folder of this process."""

    def __init__(self, factory: Factory, folder: str):
        self._factory, self._folder = factory, folder

    def __call__(self) -> Any:
        if not os.path.isdir(self._folder):
            raise _errors.UsageError(f"{self._folder} is not on {socket.gethostname()}; write the plan into a folder that all machines share")
        return self._factory()


@contextlib.contextmanager
def _parts_folder(path: str) -> Iterator[None]:
    """A folder for what is measured, which goes again where nothing was."""
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise _errors.WriteError(f"{path}, which keeps what is measured, cannot be made: {error.strerror}; write the plan into another folder") from None
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # it is not empty
            os.rmdir(path)
        raise


class _Bar:
    """Progress by tqdm, where it is installed."""

    def __init__(self, what: str, unit: str, total: int):
        try:
            from tqdm.auto import tqdm
        except ImportError:
            self._bar = None
        else:
            self._bar = tqdm(total=total, desc=what, unit=unit)

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: Any) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, number: int) -> None:
        if self._bar is not None:
            self._bar.update(number)


def _ranges(num_prompts: int, length: int) -> List[Tuple[int, int]]:
    """[first, end) of each, whatever the number of actors is; a rest that is too short joins the last."""
    firsts = list(range(0, num_prompts, length))
    if len(firsts) > 1 and num_prompts - firsts[-1] < LEAST_RANGE:
        firsts.pop()
    return list(zip(firsts, [*firsts[1:], num_prompts]))


def _require_calibration(factory: Any, settings: Mapping[str, Any]) -> None:
    """What the workers of these factories would refuse."""
    if isinstance(factory, (Pipe, Program)) and factory.plan is not None:
        raise _errors.UsageError(f"a calibration measures dense runs; leave the plan out of {type(factory).__name__}")
    targets = [name for name in ("speedup", "psnr") if settings.get(name) is not None]
    if isinstance(factory, Pipe) and targets:
        raise _errors.UsageError(f"{targets[0]}: what the steps of a pipe's run predict is not seen; ask for a density, or calibrate with Program")


def _require_actor(factory: Any, num_cpus: Any, num_gpus: Any, ray_options: Any) -> None:
    if not callable(factory):
        raise _errors.UsageError(f"factory is {factory!r}, and is to be called in each actor without arguments: Program(…), Pipe(…), or a function")
    if not isinstance(ray_options, Mapping):
        raise _errors.UsageError(f"ray_options is {ray_options!r}, and is to be a dictionary of options of ray.remote")
    for name in ("num_cpus", "num_gpus"):
        if name in ray_options:
            raise _errors.UsageError(f"{name} is given in ray_options; give it as an argument of its own")
    _arguments.amount("num_cpus", num_cpus)
    _arguments.amount("num_gpus", num_gpus)


def _pool(factory: Any, method: str, what: str, actors: int, num_cpus: float, num_gpus: float, ray_options: Mapping[str, Any], retries: int,
          start_timeout_s: float) -> Pool:  # fmt: skip
    _require_actor(factory, num_cpus, num_gpus, ray_options)
    _arguments.whole("actors", actors, 1)
    _arguments.whole("retries", retries, 0)
    _arguments.amount("start_timeout_s", start_timeout_s, positive=True)
    connect()
    return Pool(factory, method, actors, {**ray_options, "num_cpus": num_cpus, "num_gpus": num_gpus}, retries, start_timeout_s, what)
