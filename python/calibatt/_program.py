"""The command line's program as a worker: `calibatt serve` on loopback makes videos, `calibatt calibrate` measures."""

from __future__ import annotations

import collections
import contextlib
import http.client
import json
import os
import queue
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from dataclasses import dataclass, field
from typing import Any, Deque, Dict, List, Mapping, NoReturn, Optional, Sequence, Tuple

from . import _errors

#: The program ends with the process that started it, however that ends: else it would keep its GPU. PR_SET_PDEATHSIG is 1.
_START_WITH_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() == int(sys.argv[1]): os.execv(sys.argv[2], sys.argv[2:])
"""
#: Reads until the process that started it has ended, then removes a folder. It is no child of that process: Ray kills those of an actor.
_REMOVE_AFTER_PARENT = """
exec 3<&0
(cat <&3; rm -rf -- "$0" || { sleep 1; rm -rf -- "$0"; }) >/dev/null 2>&1 &
"""
_SLOWEST_POLL_SECONDS = 0.25
_REPLY_SECONDS = 60.0
_END_SECONDS = 2.0  # from the end of a process's connections to its own
_OF_EXIT_CODE = {2: _errors.UsageError, 3: _errors.NotFound, 4: _errors.FormatError, 5: _errors.Mismatch, 6: _errors.WriteError,
                 7: _errors.DeviceError}  # fmt: skip
_OF_CODE = {"plan_mismatch": _errors.Mismatch, "invalid_request": _errors.UsageError, "not_found": _errors.NotFound,
            "unreadable_file": _errors.FormatError, "not_written": _errors.WriteError, "not_a_number": _errors.NumericError,
            "device_error": _errors.DeviceError, "out_of_memory": _errors.DeviceError}  # fmt: skip
#: What the worker says itself: another one would win, and its files stay behind.
_OWN_FLAGS = {"--model", "--output", "--plan", "--port", "--host", "--prompts", "--prompt-range", "--profile"}


@dataclass(frozen=True)
class Program:
    """The installed program `calibatt` on a model folder. Nothing of PyTorch is needed. Machines must have all of it under the same paths.

    >>> Program("/models/Wan2.1-T2V-14B-Diffusers", plan="/plans/wan14b.safetensors", flags=["--steps", 50])

    Args:
        model: the model's folder, as `-m`.
        plan: a plan file, as `--plan`; None: dense.
        flags: of both `calibatt serve` and `calibatt calibrate`, which say what every video is like and how it is computed: ["--width", 832,
            "--offload"]. Where no --threads is given and no GPU is seen, OMP_NUM_THREADS is, which Ray sets to an actor's num_cpus.
        request: fields of every request, as docs/serving.md lists them: {"negative_prompt": "blurred"}.
        program: the program's path, or its name on the PATH of each machine.
    """

    model: str
    plan: Optional[str] = None
    flags: Sequence[Any] = ()
    request: Mapping[str, Any] = field(default_factory=dict)
    program: str = "calibatt"

    def __post_init__(self) -> None:
        if isinstance(self.flags, (str, bytes)):
            raise _errors.UsageError(f"flags is {self.flags!r}, and is to be a list with each flag and value by itself: ['--steps', 30]")
        for flag in map(str, self.flags):
            name = flag.split("=", 1)[0]
            if name in _OWN_FLAGS or name[:2] in ("-m", "-o") and not name.startswith("--"):
                raise _errors.UsageError(f"{flag} is no flag to give here: Program says it itself (model, plan, prompts, and where it writes and listens)")
        for reserved in ("prompt", "seed", "model", "plan"):
            if reserved in self.request:
                raise _errors.UsageError(f"{reserved} is no field of request here; each prompt and seed is given by itself, model and plan to Program")
        paths = {"model": self.model, "plan": self.plan, "program": self.program if "/" in self.program else None}
        for name, path in paths.items():  # actors work in a folder of Ray's
            if path is not None:
                object.__setattr__(self, name, os.path.abspath(os.path.expanduser(os.fsdecode(path))))

    def __call__(self) -> ProgramWorker:
        """The worker of this process. Raises NotFound where the program or the model is not on this machine."""
        return ProgramWorker(self)


class ProgramWorker:
    """Makes videos by a service that runs as long as this does, and calibrates by runs of the program."""

    def __init__(self, description: Program):
        program = shutil.which(description.program)
        if program is None:
            raise _errors.NotFound(f"{description.program} is not on {socket.gethostname()}, or not on the PATH of Ray there; install calibatt's program "
                                   "(make install) on every machine, or give its path: Program(…, program=…)")  # fmt: skip
        if not os.path.isdir(description.model):
            raise _errors.NotFound(f"the model folder {description.model} is not on {socket.gethostname()}; every machine needs it under this path")
        self._description, self._program = description, program
        self._flags = [str(flag) for flag in description.flags]
        threads = os.environ.get("OMP_NUM_THREADS", "")
        if not os.environ.get("CUDA_VISIBLE_DEVICES") and threads.isdigit() and not any(re.match(r"(-t|--threads)", flag) for flag in self._flags):
            self._flags += ["--threads", threads]
        self._folder = _Folder()
        self._service: Optional[_Service] = None

    def generate(self, prompt: str, seed: int) -> bytes:
        """One video, as the bytes of an MP4 file: those that `calibatt generate` writes.

        Raises UsageError, Mismatch, NotFound, FormatError for what cannot be, DeviceError, NumericError, WriteError, and Error where the
        service ended: the next call starts another one.
        """
        if self._service is not None and not self._service.runs():
            self._service = None
        if self._service is None:
            plan = [] if self._description.plan is None else ["--plan", self._description.plan]
            self._service = _Service([self._program, "serve", "-m", self._description.model, "-o", self._folder.name, "--port", "0", *plan, *self._flags])
        return self._service.make({**self._description.request, "prompt": prompt, "seed": seed})

    def calibrate(self, prompts: Sequence[str], seed: int, profile: str, prompt_range: Optional[Tuple[int, int]], output: Optional[str],
                  settings: Mapping[str, Any]) -> None:  # fmt: skip
        """Measures a range of the prompts into the folder `profile`, or, without a range, makes the plan `output` of what lies there."""
        if self._description.plan is not None:
            raise _errors.UsageError("a calibration measures dense runs; leave the plan out: Program(model)")
        if self._service is not None:
            self._service.end()
            self._service = None
        listed = os.path.join(self._folder.name, "prompts.txt")
        with open(listed, "w", encoding="utf-8") as file:
            file.writelines(prompt + "\n" for prompt in prompts)
        command = [self._program, "calibrate", "-m", self._description.model, "--prompts", listed, "--seed", str(seed), "--profile", profile]
        command += ["-o", str(output)] if prompt_range is None else ["--prompt-range", "{}:{}".format(*prompt_range)]
        for name, value in settings.items():
            command += [] if value is None else ["--" + name.replace("_", "-"), str(value)]
        run = _Run([*command, *self._flags])
        if run.wait() != 0:
            run.fail()


class _Folder:
    """A temporary folder that goes with this object or its process, however that ends: pools kill their actors."""

    def __init__(self) -> None:
        self.name = tempfile.mkdtemp(prefix="calibatt-")
        read, write = os.pipe()
        self._close = weakref.finalize(self, os.close, write)
        try:
            subprocess.run(["/bin/sh", "-c", _REMOVE_AFTER_PARENT, self.name], stdin=read, start_new_session=True, cwd="/", check=True)
        finally:
            os.close(read)


class _Run:
    """A run of the program that ends with this process, and the last lines of what it says."""

    def __init__(self, command: List[str]):
        self._said: Deque[str] = collections.deque(maxlen=30)
        started: queue.Queue[Any] = queue.Queue()
        # The signal comes with the end of the thread that starts it, so this one stays.
        self._thread = threading.Thread(target=self._start_and_wait, args=(command, started), daemon=True)
        self._thread.start()
        self.process: subprocess.Popen[str] = started.get()
        if isinstance(self.process, BaseException):
            raise self.process

    def _start_and_wait(self, command: List[str], started: queue.Queue[Any]) -> None:
        try:
            process = subprocess.Popen([sys.executable, "-I", "-S", "-c", _START_WITH_PARENT, str(os.getpid()), *command], text=True, errors="replace",
                                       stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
        except BaseException as error:  # noqa: BLE001 - who waits for it gets it
            started.put(error)
            return
        started.put(process)
        assert process.stderr is not None
        for line in process.stderr:
            self._said.append(line.strip())
        process.wait()

    def wait(self) -> int:
        assert self.process.stdout is not None
        self.process.stdout.read()
        self._thread.join()
        return self.process.returncode

    def fail(self) -> NoReturn:
        """Raises what the program's exit code and last line say."""
        code = self.wait()
        said = [line for line in self._said if line]
        message = re.sub(r"^calibatt: ", "", said[-1]) if said else "it said nothing"
        raise _OF_EXIT_CODE.get(code, _errors.Error)(message if code in _OF_EXIT_CODE else f"calibatt ended with code {code}: {message}")


class _Service(_Run):
    """`calibatt serve` on a free port of loopback."""

    def __init__(self, command: List[str]):
        super().__init__(command)
        assert self.process.stdout is not None
        found = re.search(r"http://[^ ]*?:(\d+) ", self.process.stdout.readline())
        if not found:
            self.fail()
        self._port = int(found.group(1))

    def runs(self) -> bool:
        return self.process.poll() is None

    def end(self) -> None:
        self.process.kill()
        self.wait()

    def make(self, request: Mapping[str, Any]) -> bytes:
        video = json.loads(self._ask("POST", "/v1/videos", request))
        path, seconds = f"/v1/videos/{video['id']}", 0.01
        while video["status"] in ("queued", "in_progress"):
            time.sleep(seconds)
            seconds = min(1.2 * seconds, _SLOWEST_POLL_SECONDS)
            video = json.loads(self._ask("GET", path))
        try:
            if video["status"] != "completed":
                error: Dict[str, str] = video.get("error") or {}
                raise _OF_CODE.get(error.get("code", ""), _errors.Error)(error.get("message", "the video failed"))
            return self._ask("GET", path + "/content")
        finally:
            with contextlib.suppress(_errors.Error):
                self._ask("DELETE", path)

    def _ask(self, method: str, path: str, body: Optional[Mapping[str, Any]] = None) -> bytes:
        key = os.environ.get("CALIBATT_API_KEY")  # the service reads it as well
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_REPLY_SECONDS)
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            reply = connection.getresponse()
            content = reply.read()
        except (OSError, http.client.HTTPException) as error:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(_END_SECONDS)
            if self.runs():
                raise _errors.Error(f"calibatt serve does not answer: {error}") from None
            self.fail()
        finally:
            connection.close()
        if reply.status < 400:
            return content
        try:
            error = json.loads(content)["error"]
            message, code = error["message"], error.get("code")
        except (ValueError, KeyError, TypeError, AttributeError):
            message, code = content.decode("utf-8", "replace")[:300], None
        raise _OF_CODE.get(code, _errors.UsageError if reply.status < 500 else _errors.Error)(message)
