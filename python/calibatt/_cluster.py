"""A pool of Ray actors that share out tasks: results in order, and what a lost machine was at is done again by another one."""

from __future__ import annotations

import collections
import os
import pickle
import time
import warnings
from typing import Any, Callable, Deque, Dict, List, Mapping, Optional, Sequence, Tuple

import ray

from . import _errors

#: Errors that the next attempt would meet as well. All others may be of one machine: its GPU, its memory, its disk.
REFUSALS = (_errors.UsageError, _errors.NotFound, _errors.Unreadable, _errors.FormatError, _errors.Mismatch, _errors.Unsupported)
#: An actor's process or machine is gone, or the result that was kept there.
LOST = (ray.exceptions.RayActorError, ray.exceptions.WorkerCrashedError, ray.exceptions.ObjectLostError, ray.exceptions.NodeDiedError,
        ray.exceptions.OutOfMemoryError)  # fmt: skip
#: No actor with these options starts, whichever machine is asked.
UNSTARTABLE = (ray.exceptions.RuntimeEnvSetupError, ray.exceptions.ActorUnschedulableError)
LOOK_AGAIN_SECONDS = 1.0


def connect() -> None:
    """To the cluster of ray.init or RAY_ADDRESS, or to one that is started on this machine. Raises DeviceError where there is none."""
    if ray.is_initialized():
        return
    try:
        ray.init(log_to_driver=False)
    except (ConnectionError, OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        address = os.environ.get("RAY_ADDRESS")
        where = f"at RAY_ADDRESS={address}" if address else "on this machine"
        instead = "unset RAY_ADDRESS to run on this machine alone" if address else "call ray.init with what yours needs"
        raise _errors.DeviceError(f"there is no Ray cluster {where}: {_line(error)}; start one (ray start --head), or {instead}") from error


class Host:
    """What an actor is: the worker that its factory makes, once."""

    def start(self, factory: Callable[[], Any]) -> None:
        self._worker = factory()

    def call(self, method: str, arguments: Tuple[Any, ...]) -> Any:
        return getattr(self._worker, method)(*arguments)


class Pool:
    """Actors that make workers by `factory`, and call `method` of them for each task.

    Args:
        factory: called without arguments in each actor. It is sent there by pickle, as are tasks and results.
        actors: how many there are at a time, from 1. Those for which the cluster has no room start when it has.
        options: of ray.remote, for each: num_cpus, num_gpus, resources, runtime_env, …
        retries: how often a task is tried again, from 0.
        start_timeout_s: how long there may be none that has started, in seconds.
        what: tasks as messages call them, with the task's index: "prompt {}".
    """

    def __init__(self, factory: Callable[[], Any], method: str, actors: int, options: Mapping[str, Any], retries: int, start_timeout_s: float, what: str):
        self._method, self._options, self._retries, self._start_timeout_s, self._what = method, dict(options), retries, start_timeout_s, what
        try:
            self._host = ray.remote(Host).options(max_restarts=0, max_task_retries=0, **self._options)
        except (TypeError, ValueError) as error:
            raise _errors.UsageError(f"ray_options: {_line(error)}; give options that ray.remote has for actors, but for max_restarts and max_task_retries, "
                                     "which are retries here") from error  # fmt: skip
        try:
            self._factory = ray.put(factory)
        except (TypeError, AttributeError, pickle.PicklingError) as error:
            raise _errors.UsageError(f"factory cannot be sent to actors: {_line(error)}; it travels by pickle: let it make in the actor, when it is called, "
                                     "what cannot be pickled") from error  # fmt: skip
        self._pending: Dict[Any, Tuple[Any, Optional[int]]] = {}  #: reference → actor and its task; None: it starts
        self._idle: List[Any] = []
        self._failures_to_start = 0
        self._none_since = 0.0
        self._num_actors = actors

    def run(self, tasks: Sequence[Tuple[Any, ...]], done: Callable[[int, Any], None]) -> None:
        """Calls the method with each task's arguments, and done(index, result) here as soon as a result is there, in any order.

        Raises what a worker refuses, at once; Error for a task that failed more than `retries` times; DeviceError when no actor starts.
        Whatever it raises, no actor is left.
        """
        waiting: Deque[int] = collections.deque(range(len(tasks)))
        attempts, left = [0] * len(tasks), len(tasks)
        self._none_since = time.monotonic()  # not since the pool was made, which may be hours ago
        try:
            for _ in range(min(self._num_actors, len(tasks))):
                self._add_actor()
            while left:
                while waiting and self._idle:
                    index, actor = waiting.popleft(), self._idle.pop()
                    self._pending[actor.call.remote(self._method, tasks[index])] = actor, index
                ready, _ = ray.wait(list(self._pending), num_returns=1, timeout=LOOK_AGAIN_SECONDS)
                for reference in ready:
                    actor, task = self._pending.pop(reference)
                    try:
                        result = ray.get(reference)
                    except ray.exceptions.RayError as error:
                        ray.kill(actor)  # another one may stand on a sound GPU or machine
                        if task is None:
                            self._count_failure_to_start(error)
                        else:
                            attempts[task] += 1
                            self._require_another_try(task, attempts[task], error)
                            waiting.appendleft(task)
                        self._add_actor()
                        continue
                    self._failures_to_start = 0
                    self._idle.append(actor)
                    if task is not None:
                        left -= 1
                        done(task, result)
                self._require_an_actor()
        finally:
            for actor in [*self._idle, *(actor for actor, _ in self._pending.values())]:
                ray.kill(actor)
            self._idle, self._pending = [], {}

    def _add_actor(self) -> None:
        actor = self._host.remote()
        self._pending[actor.start.remote(self._factory)] = actor, None

    def _count_failure_to_start(self, error: Exception) -> None:
        self._failures_to_start += 1
        _raise_refusal(error, "")
        if isinstance(error, UNSTARTABLE):
            raise _errors.UsageError(f"no actor can be started: {_line(error)}; look at ray_options: the next one would not start either") from error
        if self._failures_to_start > self._retries:
            raise _errors.Error(f"actors failed to start {self._failures_to_start} times in succession, lastly: {_described(error)}") from error

    def _require_another_try(self, task: int, attempts: int, error: Exception) -> None:
        what = self._what.format(task)
        _raise_refusal(error, what + ": ")
        if attempts > self._retries:
            raise _errors.Error(f"{what} failed {attempts} times, lastly: {_described(error)}") from error
        warnings.warn(f"{what} is run again: {_described(error)}", _errors.CalibattWarning, stacklevel=4)

    def _require_an_actor(self) -> None:
        now = time.monotonic()
        if self._idle or any(task is not None for _, task in self._pending.values()):
            self._none_since = now
        elif now - self._none_since > self._start_timeout_s:
            wanted = {name: value for name, value in self._options.items() if name in ("num_cpus", "num_gpus", "resources") and value}
            raise _errors.DeviceError(f"no actor with {wanted} has started within {self._start_timeout_s:.0f} s; the cluster has "
                                      f"{_amounts(ray.cluster_resources())}, of which {_amounts(ray.available_resources())} are free")  # fmt: skip


def _raise_refusal(error: Exception, where: str) -> None:
    cause = getattr(error, "cause", None)
    if isinstance(cause, REFUSALS):
        raise type(cause)(f"{where}{cause}") from error


def _described(error: Exception) -> str:
    cause = getattr(error, "cause", None)
    if isinstance(error, ray.exceptions.RayTaskError) and isinstance(cause, BaseException):
        return f"{type(cause).__name__}: {cause}"
    return ("its actor is lost: " if isinstance(error, LOST) else f"{type(error).__name__} of Ray: ") + _line(error)


def _line(error: BaseException) -> str:
    """Ray's messages are of many lines."""
    return " ".join(str(error).split())[:300]


def _amounts(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{resources.get(name, 0):g} {name}" for name in ("CPU", "GPU"))
