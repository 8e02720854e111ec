"""tools/install_dependencies.sh on machines where something is missing: one line, which says what to do.

Usage: dependencies_test.py SOURCE_DIR. The machine is a folder of stand-ins for dpkg-query, apt-get, id and sudo.
"""
import os
import shutil
import subprocess
import sys
import tempfile

script = os.path.join(sys.argv[1], "tools/install_dependencies.sh")
TOOLS = ["bash", "grep", "mktemp", "rm", "tail", "env"]
NO_NETWORK = "W: Failed to fetch http://example.org/InRelease  Temporary failure resolving 'example.org'"


def run(uid, installed, sudo=None, apt="exit 0", kind="program"):
    with tempfile.TemporaryDirectory() as folder:
        for tool in TOOLS:
            os.symlink(shutil.which(tool), os.path.join(folder, tool))
        stand_ins = {
            "id": f"echo {uid}",
            "dpkg-query": "echo install ok installed" if installed else "exit 1",
            "apt-get": apt,
            "apt-cache": "echo there is one",
        }
        if sudo is not None:
            stand_ins["sudo"] = sudo
        for name, body in stand_ins.items():
            path = os.path.join(folder, name)
            with open(path, "w", encoding="utf-8") as file:
                file.write(f"#!{shutil.which('bash')}\n{body}\n")
            os.chmod(path, 0o755)
        result = subprocess.run(["bash", script, kind], env={"PATH": folder}, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        return result.returncode, result.stdout.splitlines(), result.stderr.splitlines()


def expect(what, condition, seen):
    if not condition:
        sys.exit(f"{what}: {seen}")


seen = run(1000, installed=True)
expect("nothing to do where all is there", seen == (0, [], []), seen)

for sudo in (None, "exit 1"):
    seen = run(1000, installed=False, sudo=sudo)
    code, output, errors = seen
    expect("one line with the administrator's command", code == 1 and not output and len(errors) == 1 and "apt-get install -y" in errors[0]
           and "libdnnl-dev" in errors[0] and "libgtest-dev" not in errors[0], seen)

seen = run(0, installed=False, apt=f'for i in 1 2 3 4 5; do echo "{NO_NETWORK}"; done; [ "$4" = update ]')
code, output, errors = seen
expect("without network one line", code == 1 and len(errors) == 1 and "network" in errors[0] and "example.org" in errors[0], seen)

seen = run(0, installed=False, apt='[ "$4" = update ] || { echo "E: Unable to locate package libdnnl-dev"; exit 100; }')
code, output, errors = seen
expect("an unknown package is named", code == 1 and len(errors) == 1 and "libdnnl-dev" in errors[0] and "universe" in errors[0], seen)

seen = run(0, installed=False)
expect("root installs", seen[0] == 0 and len(seen[1]) == 1 and not seen[2], seen)

code, output, errors = run(1000, installed=False, kind="wheel")
expect("the wheel needs neither FFmpeg nor oneDNN", code == 1 and "libhwy-dev" in errors[0] and "python3-venv" in errors[0]
       and "libavcodec-dev" not in errors[0] and "libdnnl-dev" not in errors[0], errors)
code, output, errors = run(1000, installed=True, kind="wheels")
expect("what can be asked for is said", code == 2 and "program, tests, bench or wheel, not wheels" in errors[0], errors)
