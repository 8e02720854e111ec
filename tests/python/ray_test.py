"""calibatt.ray on one machine: two actors on tiny-wan, one of them killed, make what one process makes."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import types
import urllib.error
import urllib.request
from pathlib import Path

import plan_reader
import pytest
from conftest import DENSITY, PROGRAM, ROOT, SETTINGS, run_program, setting_flags

ray = pytest.importorskip("ray")

import calibatt  # noqa: E402
from calibatt import _cluster  # noqa: E402
from calibatt import ray as cluster  # noqa: E402

MODEL = ROOT / "models/tiny-wan"
# One thread, as `generate` beside it has: another number makes another MP4 of the same frames.
FLAGS = ["-W", 128, "-H", 64, "--video-frames", 5, "--steps", 3, "--dtype", "fp32", "--threads", 1]
PROMPTS = [f"a red circle moves over {number} stripes" for number in range(16)]


@pytest.fixture(scope="module", autouse=True)
def machine():
    patch = pytest.MonkeyPatch()
    folders = [str(ROOT / each) for each in ("python", "tools", "tests/python")]
    patch.setenv("PYTHONPATH", os.pathsep.join([*folders, os.environ.get("PYTHONPATH", "")]))
    patch.setenv("RAY_worker_niceness", "0")  # else workers wait for whatever else runs here
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()
    patch.undo()


class Watched:
    """A factory that writes down which process makes which prompt, as it begins and ends."""

    def __init__(self, factory, log):
        self.factory, self.log = factory, str(log)

    def __call__(self):
        worker, log = self.factory(), self.log

        def write(*words):
            with open(log, "a") as file:
                file.write(json.dumps([os.getpid(), *words]) + "\n")

        class Writing:
            def __getattr__(self, method):
                def call(*arguments):
                    task = arguments[0] if method == "generate" else arguments[3]
                    write("begun", task)
                    result = getattr(worker, method)(*arguments)
                    write("ended", task)
                    return result

                return call

        return Writing()

    def all(self, what):
        """[process, task] of each."""
        path = Path(self.log)
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [[pid, task] for pid, word, task in lines if word == what]


def program(**more):
    return cluster.Program(str(MODEL), flags=FLAGS, program=PROGRAM, **more)


def children(pid):
    found = subprocess.run(["ps", "-o", "pid=,args=", "--ppid", str(pid)], capture_output=True, text=True).stdout
    return [int(line.split()[0]) for line in found.splitlines() if " serve " in line]


def ended(pid):
    """Whether it is gone, but for an entry that nobody has read."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The videos of one process."""
    folder = tmp_path_factory.mktemp("alone")
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    run_program("generate", "-m", MODEL, "--prompts", folder / "prompts.txt", "-s", 5, "-o", folder / "v.mp4", *FLAGS)
    return [path.read_bytes() for path in sorted(folder.glob("v_*.mp4"))]


def test_a_killed_actor_costs_its_prompt_only(tmp_path, alone):
    watched, killed = Watched(program(), tmp_path / "log"), {}

    def kill_one(index, result):
        in_the_middle = [each for each in watched.all("begun") if each not in watched.all("ended")]
        if index < 3 or killed or not in_the_middle:
            return
        pid, prompt = in_the_middle[0]
        (service,) = children(pid)
        os.kill(pid, signal.SIGKILL)
        killed.update(prompt=prompt, service=service)

    with pytest.warns(calibatt.CalibattWarning, match="is run again: its actor is lost"):
        videos = cluster.generate(watched, PROMPTS, seed=5, actors=2, on_result=kill_one)
    assert len(alone) == 16 and videos == alone, "16 results, in order, of the same bytes"
    begun = sorted(prompt for _, prompt in watched.all("begun"))
    assert begun == sorted([*PROMPTS, killed["prompt"]]), "one prompt was begun twice, no other"
    end = time.monotonic() + 10
    while not ended(killed["service"]) and time.monotonic() < end:
        time.sleep(0.05)
    assert ended(killed["service"]), "its service ended with it"


def test_the_program_ends_with_its_process():
    """However that ends, and whoever started it."""
    script = f"""
import os, signal
from calibatt._program import Program
worker = Program({str(MODEL)!r}, flags={FLAGS!r}, program={PROGRAM!r})()
worker.generate("a", 1)
print(worker._service.process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert done.returncode == -signal.SIGKILL
    end = time.monotonic() + 10
    while not ended(int(done.stdout)) and time.monotonic() < end:
        time.sleep(0.05)
    assert ended(int(done.stdout))


def left_in(folder, seconds=10):
    """What is there, once nothing of calibatt's is or the time is over."""
    end = time.monotonic() + seconds
    while list(folder.glob("calibatt-*")) and time.monotonic() < end:
        time.sleep(0.05)
    return sorted(each.name for each in folder.glob("calibatt-*"))


def test_actors_leave_no_folders(tmp_path):
    environment = {"runtime_env": {"env_vars": {"TMPDIR": str(tmp_path)}}}
    made = []
    cluster.generate(program(), PROMPTS[:2], actors=2, ray_options=environment, on_result=lambda *_: made.extend(tmp_path.glob("calibatt-*")))
    assert made, "there were some"
    assert left_in(tmp_path) == []
    script = f"""
import os, signal, tempfile
from calibatt._program import Program
make = Program({str(MODEL)!r}, program={PROGRAM!r})
one, other = make(), make()
assert len(os.listdir(tempfile.gettempdir())) == 2
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", script], env={**os.environ, "TMPDIR": str(tmp_path)})
    assert done.returncode == -signal.SIGKILL
    assert left_in(tmp_path) == []


class Slow:
    def generate(self, prompt, seed):
        time.sleep(0.5)
        return prompt, seed, os.getpid()


def test_another_actor_takes_the_place_of_a_killed_one():
    def kill(index, result):
        if index == 0:
            os.kill(result[2], signal.SIGKILL)

    with pytest.warns(calibatt.CalibattWarning, match="prompt 1 is run again: its actor is lost"):
        results = cluster.generate(Slow, ["a", "b", "c"], seed=[3, 4, 5], on_result=kill)
    assert [result[:2] for result in results] == [("a", 3), ("b", 4), ("c", 5)]
    assert results[0][2] != results[1][2] == results[2][2]


def test_a_machine_that_is_lost_again_and_again_ends_the_run():
    with pytest.warns(calibatt.CalibattWarning), pytest.raises(calibatt.Error, match="prompt 0 failed 2 times, lastly: its actor is lost"):
        cluster.generate(lambda: Ending(), ["a"], retries=1)


class Ending:
    def generate(self, prompt, seed):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_service_that_ends_is_started_again(tmp_path, alone):
    """The actor lives, its service does not: the prompt is run again."""
    watched, killed = Watched(program(), tmp_path / "log"), []

    def kill_service(index, result):
        if not killed:
            pid = watched.all("begun")[-1][0]
            killed.extend(children(pid))
            os.kill(killed[0], signal.SIGKILL)

    with pytest.warns(calibatt.CalibattWarning, match="is run again: Error: calibatt ended with code -9"):
        assert cluster.generate(watched, PROMPTS[:3], seed=[5, 5, 5], on_result=kill_service) == alone[:3]
    assert killed


@pytest.mark.parametrize("killed", [False, True])
def test_calibration_is_that_of_one_process(tmp_path, killed):
    prompts, settings = PROMPTS[:6], {**SETTINGS, "density": DENSITY}
    (tmp_path / "prompts.txt").write_text("\n".join(prompts))
    command = ["calibrate", "-m", MODEL, "--prompts", tmp_path / "prompts.txt", *FLAGS, *setting_flags(settings)]
    for each in ("0:3", "3:6"):
        run_program(*command, "--prompt-range", each, "--profile", tmp_path / each)
    run_program("merge", "-o", tmp_path / "merged", tmp_path / "0:3", tmp_path / "3:6")
    run_program(*command, "--profile", tmp_path / "merged", "-o", tmp_path / "alone.safetensors")

    watched = Watched(program(), tmp_path / "log")
    if killed:
        watched = KillsFirst(program(), tmp_path / "log")
    plan = cluster.calibrate(watched, prompts, tmp_path / "shared.safetensors", DENSITY, settings={**SETTINGS, "anchors": None}, prompts_per_range=3, actors=2)
    assert plan.density == calibatt.Plan(tmp_path / "alone.safetensors").density
    both = [plan_reader.read_safetensors(tmp_path / name)[0] for name in ("shared.safetensors", "alone.safetensors")]
    assert both[0].keys() == both[1].keys()
    assert all(bytes(both[0][name].raw) == bytes(both[1][name].raw) for name in both[0])
    begun = sorted(str(each) for _, each in watched.all("begun"))
    assert begun == sorted(["None", "[0, 3]", "[3, 6]"] + (["[0, 3]"] if killed else []))
    assert (tmp_path / "shared.safetensors.profile").is_dir() and not (tmp_path / "shared.safetensors.parts").exists()
    with pytest.raises(calibatt.Mismatch, match="prompt 0: plan: shared does not fit: .* 5 frames .* 9 frames"):
        cluster.generate(program(plan=str(tmp_path / "shared.safetensors"), request={"num_frames": 9}), prompts[:1])


class KillsFirst(Watched):
    """The first actor that measures the first range ends once that range's first prompt is kept."""

    def __call__(self):
        worker, log = super().__call__(), self.log

        class Mortal:
            def calibrate(self, prompts, seed, profile, prompt_range, output, settings):
                if prompt_range == (0, 3) and not os.path.exists(log + ".killed"):
                    import threading

                    def kill():
                        while not list(Path(profile).glob("prompt*")):
                            time.sleep(0.01)
                        Path(log + ".killed").touch()
                        os.kill(os.getpid(), signal.SIGKILL)

                    threading.Thread(target=kill, daemon=True).start()
                return worker.calibrate(prompts, seed, profile, prompt_range, output, settings)

        return Mortal()


def load_pipe():
    from diffusers import WanPipeline

    pipe = WanPipeline.from_pretrained(MODEL)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_a_pipe_of_diffusers(loaded):
    import numpy as np
    import torch

    call = dict(height=64, width=96, num_frames=5, num_inference_steps=2, guidance_scale=4.0)
    torch.set_num_threads(1)  # as Ray has it for one CPU
    made = cluster.generate(cluster.Pipe(load_pipe, call=call), PROMPTS[:2], seed=[1, 2], ray_options={"runtime_env": {"env_vars": {"OMP_NUM_THREADS": "1"}}})
    assert made[0].shape == (5, 64, 96, 3) and made[0].dtype == np.uint8
    for prompt, seed, video in zip(PROMPTS, (1, 2), made):
        frames = loaded["wan"](prompt=prompt, generator=torch.Generator("cpu").manual_seed(seed), output_type="np", **call).frames[0]
        assert np.abs(np.round(frames * 255) - video).max() <= 1


def test_ray_serve():
    serve = pytest.importorskip("ray.serve")

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    try:
        handle = serve.run(cluster.deployment(program()), route_prefix="/videos")
        video = handle.generate.remote(PROMPTS[0], 5).result(timeout_s=120)

        def post(body):
            request = urllib.request.Request(f"http://127.0.0.1:{port}/videos", json.dumps(body).encode(), {"Content-Type": "application/json"})
            try:
                with urllib.request.urlopen(request, timeout=120) as reply:
                    return reply.status, reply.headers["Content-Type"], reply.read()
            except urllib.error.HTTPError as error:
                return error.code, error.headers["Content-Type"], error.read()

        assert post({"prompt": PROMPTS[0], "seed": 5}) == (200, "video/mp4", video)
        refused = (({}, b"prompt"), ({"prompt": 5}, b"list of texts"), ({"prompt": "a", "seed": -1}, b"seed"), ({"prompt": "a", "steps": 3}, b"nothing else"))
        for body, text in refused:
            status, _, message = post(body)
            assert status == 400 and text in message, (body, message)
    finally:
        serve.shutdown()


@pytest.mark.parametrize(
    "arguments, text",
    [
        (dict(prompts="one"), "list of texts"),
        (dict(prompts=[]), "list of texts"),
        (dict(factory=5), "called in each actor"),
        (dict(actors=0), "actors is 0"),
        (dict(actors=1.5), "actors is 1.5"),
        (dict(retries=-1), "retries is -1"),
        (dict(num_gpus=-1), "num_gpus is -1"),
        (dict(num_cpus="2"), "num_cpus is '2'"),
        (dict(seed=-1), "seed is -1"),
        (dict(seed=2**64), "less than 2\\^64"),
        (dict(seed=[1]), "1 numbers for 2 prompts"),
        (dict(start_timeout_s=float("nan")), "start_timeout_s is nan"),
        (dict(start_timeout_s=0), "start_timeout_s is 0, and is to be a number above 0"),
        (dict(ray_options={"num_gpus": 1}), "argument of its own"),
        (dict(on_result=5), "on_result is 5"),
    ],
)
def test_arguments_are_refused_before_anything_runs(arguments, text):
    arguments = {"factory": program(), "prompts": PROMPTS[:2], **arguments}
    with pytest.raises(calibatt.UsageError, match=text):
        cluster.generate(arguments.pop("factory"), arguments.pop("prompts"), **arguments)


def test_what_no_machine_could_do_is_not_tried_again(tmp_path):
    with pytest.raises(calibatt.NotFound, match="no-such-program is not on"):
        cluster.generate(cluster.Program(str(MODEL), program="no-such-program"), PROMPTS)
    with pytest.raises(calibatt.NotFound, match="model folder /nowhere is not on"):
        cluster.generate(cluster.Program("/nowhere", program=PROGRAM), PROMPTS)
    with pytest.raises(calibatt.UsageError, match="prompt 0: .*width 50"):
        cluster.generate(program(request={"width": 50}), PROMPTS[:1])
    with pytest.raises(calibatt.UsageError, match="prompt 1: is to be one line"):
        cluster.calibrate(program(), ["a", "b\nc"], tmp_path / "plan.safetensors")
    with pytest.raises(calibatt.UsageError, match="plan.json: the name must end in .safetensors"):
        cluster.calibrate(program(), PROMPTS, tmp_path / "plan.json")
    assert not list(tmp_path.iterdir()), "before anything is measured"
    with pytest.raises(calibatt.UsageError, match="prompts_per_range is 2"):
        cluster.calibrate(program(), PROMPTS, tmp_path / "plan.safetensors", prompts_per_range=2)
    for flags in (["--steps", 2, "-o", "elsewhere"], ["--output=elsewhere"], ["--port", 1], ["-mother"]):
        with pytest.raises(calibatt.UsageError, match="is no flag to give here"):
            cluster.Program(str(MODEL), flags=flags)
    with pytest.raises(calibatt.UsageError, match="seed is no field of request"):
        program(request={"seed": 1})


@pytest.mark.parametrize(
    "settings, text",
    [
        ({"densty": 0.3}, "there is no setting 'densty'"),
        ({"density": 7}, "density 7: must be"),
        ({"token_order": "tiles"}, "tiles"),
        ({"budget": "energy", "ranking": "harm"}, "ranking harm: budget energy"),
        ({"speedup": 2, "psnr": 30}, "a plan has one target"),
        ({3: 1}, "3 is no name of a setting"),
    ],
)
def test_settings_are_refused_at_the_call(tmp_path, settings, text):
    with pytest.raises(calibatt.UsageError, match=text):
        cluster.calibrate(lambda: pytest.fail("an actor has started"), PROMPTS, tmp_path / "plan.safetensors", settings=settings)
    assert not list(tmp_path.iterdir())


def test_a_calibration_that_no_worker_could_make_is_refused_at_the_call(tmp_path):
    for factory in (program(plan="/plan.safetensors"), cluster.Pipe(load_pipe, plan="/plan.safetensors")):
        with pytest.raises(calibatt.UsageError, match=f"leave the plan out of {type(factory).__name__}"):
            cluster.calibrate(factory, PROMPTS, tmp_path / "plan.safetensors")
    with pytest.raises(calibatt.UsageError, match="speedup: what the steps of a pipe's run predict is not seen"):
        cluster.calibrate(cluster.Pipe(load_pipe), PROMPTS, tmp_path / "plan.safetensors", settings={"speedup": 2})
    assert not list(tmp_path.iterdir())


def test_a_calibration_that_measured_nothing_leaves_nothing(tmp_path):
    with pytest.raises(calibatt.NotFound, match="no-such-program"):
        cluster.calibrate(cluster.Program(str(MODEL), program="no-such-program"), PROMPTS, tmp_path / "plan.safetensors")
    assert not list(tmp_path.iterdir())
    (tmp_path / "plan.safetensors.parts").write_text("a file of that name")
    with pytest.raises(calibatt.WriteError, match="plan.safetensors.parts, which keeps what is measured, cannot be made: File exists; write"):
        cluster.calibrate(program(), PROMPTS, tmp_path / "plan.safetensors")


def test_what_ray_refuses_is_told_in_a_line(monkeypatch):
    def refusal(kind, factory=Slow, **options):
        with pytest.raises(kind) as raised:
            cluster.generate(factory, PROMPTS[:1], retries=0, ray_options=options)
        assert "\n" not in str(raised.value)
        return str(raised.value)

    assert refusal(calibatt.UsageError, no_such_option=1).startswith("ray_options: Invalid option keyword no_such_option")
    lock = threading.Lock()
    assert refusal(calibatt.UsageError, lambda: lock).startswith("factory cannot be sent to actors: ")
    nowhere = refusal(calibatt.UsageError, runtime_env={"working_dir": "/nowhere"})
    assert "/nowhere" in nowhere and "ray_options" in nowhere
    # As where RAY_ADDRESS names a machine that is gone.
    monkeypatch.setattr(_cluster.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(_cluster.ray, "init", lambda **_: (_ for _ in ()).throw(ConnectionError("could not connect\nto GCS")))
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert refusal(calibatt.DeviceError) == ("there is no Ray cluster at RAY_ADDRESS=10.0.0.1:6379: could not connect to GCS; start one "
                                             "(ray start --head), or unset RAY_ADDRESS to run on this machine alone")  # fmt: skip


def test_what_goes_on_failing_ends_all():
    class Failing:
        def generate(self, prompt, seed):
            raise RuntimeError("no memory")

    def broken():
        raise OSError("no disk")

    again = pytest.warns(calibatt.CalibattWarning, match="prompt 0 is run again: RuntimeError: no memory")
    with again, pytest.raises(calibatt.Error, match="prompt 0 failed 2 times, lastly: RuntimeError: no memory"):
        cluster.generate(lambda: Failing(), PROMPTS[:1], retries=1)
    with pytest.raises(calibatt.Error, match="actors failed to start 2 times in succession, lastly: OSError: no disk"):
        cluster.generate(broken, PROMPTS[:1], retries=1)
    with pytest.raises(calibatt.UsageError, match="/nowhere is not on .*; write the plan into a folder that all machines share"):
        cluster._InSharedFolder(program(), "/nowhere")()


def test_no_room_for_an_actor_is_said():
    with pytest.raises(calibatt.DeviceError, match="no actor with .*'num_gpus': 1.* has started within 1 s; the cluster has 2 CPU, 0 GPU"):
        cluster.generate(program(), PROMPTS, num_gpus=1, start_timeout_s=1)


def test_a_pool_that_was_made_hours_ago_waits_for_its_actors(monkeypatch):
    """As the one that makes the plan, while others measured."""
    pool = _cluster.Pool(lambda: time.sleep(3) or "text", "upper", 1, {"num_cpus": 1}, 0, 60, "task {}")
    later = types.SimpleNamespace(monotonic=lambda: time.monotonic() + 3600)
    monkeypatch.setattr(_cluster, "time", later)
    results = []
    pool.run([()], lambda index, result: results.append(result))
    assert results == ["TEXT"]


def test_ranges_do_not_depend_on_the_cluster():
    assert cluster._ranges(16, 4) == [(0, 4), (4, 8), (8, 12), (12, 16)]
    assert cluster._ranges(10, 4) == [(0, 4), (4, 10)]
    assert cluster._ranges(2, 4) == [(0, 2)]
