"""README's C++ example, built against an installed calibatt and run on the shipped model.

Usage: consumer_test.py CMAKE SOURCE_DIR BUILD_DIR. Installs BUILD_DIR into a temporary prefix, takes the example from docs/cpp_api.md, makes its video
small (that is all that is changed), and builds it as a project of its own that finds calibatt with find_package.
"""
import os
import re
import shutil
import subprocess
import sys
import tempfile

cmake, source, build = sys.argv[1:]


def run(*command, **options):
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)
    if result.returncode != 0:
        sys.exit(f"{' '.join(command)} ended with {result.returncode}:\n{result.stdout}")
    return result.stdout


def example():
    with open(os.path.join(source, "docs/cpp_api.md"), encoding="utf-8") as page:
        blocks = re.findall(r"^```cpp\n(.*?)^```", page.read(), re.M | re.S)
    code = [block for block in blocks if "#include <calibatt/pipeline.h>" in block]
    if len(code) != 1:
        sys.exit(f"docs/cpp_api.md: {len(code)} C++ examples with #include <calibatt/pipeline.h> where one is expected")
    small, found = re.subn(r'\.plan_path = "[^"]*"', ".steps = 2, .width = 64, .height = 64, .video_frames = 5", code[0])
    if found != 1:
        sys.exit("docs/cpp_api.md: the C++ example names no .plan_path, where this test puts a small size")
    return small


with tempfile.TemporaryDirectory(prefix="calibatt_consumer_") as folder:
    prefix, project, output = (os.path.join(folder, name) for name in ("prefix", "project", "build"))
    run(cmake, "--install", build, "--prefix", prefix)

    headers = sorted(os.listdir(os.path.join(prefix, "include/calibatt")))
    public = sorted(os.listdir(os.path.join(source, "include/calibatt")))
    if headers != public:
        sys.exit(f"installed headers {headers}, public ones {public}")
    if os.path.exists(os.path.join(prefix, "include/base")):
        sys.exit("headers of src/ were installed")
    if "generate" not in run(os.path.join(prefix, "bin/calibatt"), "--help"):
        sys.exit("the installed program does not run")

    shutil.copytree(os.path.join(source, "tests/install/consumer"), project)
    with open(os.path.join(project, "main.cpp"), "w", encoding="utf-8") as file:
        file.write(example())
    run(cmake, "-G", "Ninja", "-S", project, "-B", output, f"-DCMAKE_PREFIX_PATH={prefix}", "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON")
    run(cmake, "--build", output)
    with open(os.path.join(output, "compile_commands.json"), encoding="utf-8") as file:
        if re.search(r"-I\S*/src\b", file.read()):
            sys.exit("src/ is in the consumer's include path")
    os.symlink(os.path.join(source, "models"), os.path.join(folder, "models"))
    run(os.path.join(output, "consumer"), cwd=folder)
    videos = [name for name in os.listdir(folder) if name.endswith(".mp4")]
    if not videos or os.path.getsize(os.path.join(folder, videos[0])) < 500:
        sys.exit("the example wrote no video")
