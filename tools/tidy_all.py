"""clang-tidy 14 over all sources. usage: tools/tidy_all.py BUILD JOBS     BUILD: a folder that CMake configured with CMAKE_UNITY_BUILD=ON

Most of the work on a source goes into the headers that all of them include. So the sources of a folder are looked at as one, written one after the
other into one file: clang's analyzer does not follow paths through a .cpp that is included. Findings are told by their places in the sources. A source
that no command of the build compiles is a failure, for nobody would look at it.
"""
import bisect
import concurrent.futures
import json
import os
import re
import shlex
import subprocess
import sys

# Of a function's paths the analyzer follows so many nodes; by itself 225,000, which takes four times as long. What a branch changed is looked at
# with all of them (tools/style.sh tidy).
MAX_NODES = 20_000
# Checks that take what one source uses for what another declares, where both declare the same; they are made of what a branch changed.
LEFT_TO_SINGLE_SOURCES = "-misc-unused-alias-decls,-misc-unused-using-decls"
# Paths from the project's root: what needs CUDA's headers, and tests.
LEFT_OUT = re.compile(r"^src/backend/cuda/|_test\.cpp$")


def sources_of_project():
    """What git has, or would have, among src/."""
    run = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "src/*.cpp"], stdout=subprocess.PIPE, text=True)
    sources = {path for path in run.stdout.split("\0") if path and os.path.exists(path) and not LEFT_OUT.search(path)}
    if run.returncode != 0 or not sources:
        sys.exit("clang-tidy looks at the sources that git lists, and it lists none here: clone the project with git")
    return sources


def sources_of(path, build):
    """The project's sources that a file of a command holds, as paths from its root: a unity file's, or it alone."""
    sources = [path]
    if "/Unity/" in os.path.relpath(os.path.realpath(path), os.path.realpath(build)):
        with open(path) as file:
            sources = re.findall(r'^#include "(/.*\.cpp)"$', file.read(), re.MULTILINE)
    return [os.path.relpath(os.path.realpath(source)) for source in sources]  # CMake's paths may lead through a link


class Joined:
    """Sources one after the other in one file, and which line of it is which of theirs."""

    def __init__(self, path, sources):
        self.path, self.sources, self.first_lines = path, sources, []
        line = 1
        with open(path, "w") as out:
            for source in sources:
                with open(source) as file:
                    text = file.read()
                self.first_lines.append(line)
                out.write(text)
                line += text.count("\n")

    def place(self, match):
        line = int(match[1])
        index = bisect.bisect_right(self.first_lines, line) - 1
        return f"{self.sources[index]}:{line - self.first_lines[index] + 1}:"


def join_all(build, project):
    """The joined files of the project's sources, with a compile_commands.json beside them."""
    folder = os.path.join(build, "joined")
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(build, "compile_commands.json")) as file:
        commands = json.load(file)
    joined, entries = [], []
    for command in commands:
        sources = [source for source in sources_of(command["file"], build) if source in project]
        if not sources:
            continue
        path = os.path.join(os.path.abspath(folder), f"{len(joined)}.cpp")
        joined.append(Joined(path, sources))
        beside = " -iquote " + shlex.quote(os.path.abspath(os.path.dirname(sources[0])))  # includes of what stands beside a source
        entries.append({**command, "file": path, "command": command["command"].replace(command["file"], path) + beside})
    with open(os.path.join(folder, "compile_commands.json"), "w") as file:
        json.dump(entries, file)
    return folder, joined


def look_at(folder, joined):
    """(found anything, what was said)"""
    run = subprocess.run(["clang-tidy-14", "-p", folder, "--quiet", "--config-file=.clang-tidy", "--warnings-as-errors=*",
                          f"--checks={LEFT_TO_SINGLE_SOURCES}", "--extra-arg=-Xclang", "--extra-arg=-analyzer-config",
                          "--extra-arg=-Xclang", f"--extra-arg=max-nodes={MAX_NODES}", joined.path],
                         capture_output=True, text=True)
    said = re.sub(re.escape(joined.path) + r":(\d+):", joined.place, run.stdout)
    if run.returncode != 0 and not run.stdout.strip():
        said = run.stderr
    return run.returncode != 0, said


def main():
    build, jobs = sys.argv[1], int(sys.argv[2])
    project = sources_of_project()
    folder, joined = join_all(build, project)
    if passed_over := sorted(project - {source for each in joined for source in each.sources}):
        print("clang-tidy: no command of the build compiles " + ", ".join(passed_over), file=sys.stderr)
        return 1
    print(f"{sum(len(each.sources) for each in joined)} sources in {len(joined)} files", flush=True)
    failed = []
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        for each, (found, said) in zip(joined, pool.map(lambda one: look_at(folder, one), joined)):
            if found:
                failed.append(os.path.dirname(each.sources[0]))
                print(said, flush=True)
    if failed:
        print("clang-tidy: findings (above) in " + ", ".join(sorted(set(failed))), file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
