"""examples/cluster: what each task or pod runs, with a program that writes down how it was called."""

import shlex
import subprocess

import pytest
from conftest import ROOT

RECIPES = ROOT / "examples/cluster"
PROMPTS = "abcdef"
LISTED = "# a comment\na\n\nb\n   # another\nc\nd\n\t\ne\nf\n"


@pytest.fixture
def calls(tmp_path):
    """run(command, variables…), and called(): with which words the program was called since. Its merge fails where there is a file `killed`."""
    (tmp_path / "bin").mkdir()
    program, log = tmp_path / "bin/calibatt", tmp_path / "log"
    program.write_text(f"""#!/bin/bash
printf '%s\\n' "$(printf '%q ' "$@")" >>{shlex.quote(str(log))}
if [ "$1" = merge ]; then mkdir "$3" && [ ! -e {shlex.quote(str(tmp_path / "killed"))} ]; fi
""")
    program.chmod(0o755)
    (tmp_path / "prompts.txt").write_text(LISTED)

    def run(command, **variables):
        path = f"{tmp_path / 'bin'}:/usr/bin:/bin"
        return subprocess.run(command, env={"PATH": path, **variables}, cwd=tmp_path, capture_output=True, text=True)

    def called():
        lines = [shlex.split(line) for line in log.read_text().splitlines()] if log.exists() else []
        log.unlink(missing_ok=True)
        return lines

    return run, called


def slurm(name, *arguments):
    return ["bash", str(RECIPES / f"slurm_{name}.sh"), *arguments], {}


def pod(name, folder, job=0):
    """The command of a Job's container, in a folder that is /data to it, and its variables."""
    yaml = pytest.importorskip("yaml")
    container = list(yaml.safe_load_all((RECIPES / f"kubernetes_{name}.yaml").read_text()))[job]["spec"]["template"]["spec"]["containers"][0]
    variables = {each["name"]: each["value"] for each in container.get("env", [])}
    return [*container["command"], *(text.replace("/data", str(folder)) for text in container["args"])], variables


@pytest.mark.parametrize("name", ["generate", "calibrate"])
def test_what_the_program_refuses_is_not_tried_again(name):
    yaml = pytest.importorskip("yaml")
    for job in yaml.safe_load_all((RECIPES / f"kubernetes_{name}.yaml").read_text()):
        spec = job["spec"]
        refused, taken_away = spec["podFailurePolicy"]["rules"]
        assert refused["action"] == "FailJob" and refused["onExitCodes"]["values"] == [2, 3, 4, 5]
        assert [refused["onExitCodes"]["containerName"]] == [each["name"] for each in spec["template"]["spec"]["containers"]]
        assert taken_away == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]}
        assert spec["template"]["spec"]["restartPolicy"] == "Never", "as a podFailurePolicy needs"


def variables_of(task, tasks):
    number = str(task)
    return {"SLURM_ARRAY_TASK_ID": number, "SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_COUNT": str(tasks), "JOB_COMPLETION_INDEX": number}


def shares_of(calls, tmp_path):
    return [(tmp_path / words[words.index("--prompts") + 1]).read_text().split() for words in calls]


@pytest.mark.parametrize("kind", ["slurm", "kubernetes"])
def test_every_prompt_is_one_tasks(tmp_path, calls, kind):
    run, called = calls
    command, variables = slurm("generate", "model", "prompts.txt", "videos", "4") if kind == "slurm" else pod("generate", tmp_path)
    shares = []
    for task in range(4):
        done = run(command, **variables_of(task, 4), **variables)
        assert done.returncode == 0, done.stderr
        (words,) = called()
        assert words[0] == "generate"
        shares += shares_of([words], tmp_path)
    assert shares == [["a", "e"], ["b", "f"], ["c"], ["d"]]


def test_a_task_that_slurm_runs_alone_has_its_own_share(tmp_path, calls):
    """sbatch --array=1: of this array it is the first and only one."""
    run, called = calls
    alone = {"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_COUNT": "1"}
    assert run(slurm("generate", "model", "prompts.txt", "videos", "4", "--steps", "3")[0], **alone).returncode == 0
    made = called()
    assert shares_of(made, tmp_path) == [["b", "f"]] and made[0][-2:] == ["--steps", "3"]
    for number in ("1", "0", "--plan", ""):
        refused = run(slurm("generate", "model", "prompts.txt", "videos", number)[0], **alone)
        assert refused.returncode == 2 and "give MODEL PROMPTS FOLDER TASKS" in refused.stderr, number
    assert called() == []


@pytest.mark.parametrize("kind", ["slurm", "kubernetes"])
def test_ranges_are_measured_and_joined(tmp_path, calls, kind):
    run, called = calls
    both = [slurm("calibrate", what, "model", "prompts.txt", "plan.safetensors", "4") for what in ("measure", "plan")]
    if kind == "kubernetes":
        both = [pod("calibrate", tmp_path, job) for job in (0, 1)]
    ranges = []
    for task in range(3):
        command, variables = both[0]
        done = run(command, **variables_of(task, 3), **variables)
        assert done.returncode == 0, done.stderr
        ranges += [words[words.index("--prompt-range") + 1] for words in called()]
    assert ranges == ["0:4", "4:6"], "comments are no prompts, and the third has nothing to do"

    # A merge that was killed leaves no profile that the next run would take for whole.
    (tmp_path / "plan.safetensors.parts").mkdir()
    (tmp_path / "killed").touch()
    assert run(both[1][0]).returncode != 0 and [words[0] for words in called()] == ["merge"]
    (tmp_path / "killed").unlink()
    done = run(both[1][0])
    assert done.returncode == 0, done.stderr
    merge, calibrate = called()
    assert merge[0] == "merge" and calibrate[calibrate.index("--profile") + 1].endswith("plan.safetensors.profile")
    assert run(both[1][0]).returncode == 0 and [words[0] for words in called()] == ["calibrate"]


def test_images_have_the_program_where_pods_look_for_it():
    final = (ROOT / "Dockerfile").read_text().split("FROM ")[-1]
    assert "ENV PATH=/opt/calibatt/bin:$PATH" in final
