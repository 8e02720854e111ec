"""The ctypes mirror against the header: sizes and offsets of every member, and every function, as a C compiler sees them.

Usage: layout_test.py COMPILER ROOT, with calibatt on PYTHONPATH.
"""

import ctypes
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from calibatt import _library

COMPILER, ROOT = sys.argv[1], Path(sys.argv[2])
HEADER = re.sub(r"//.*", "", (ROOT / "include/calibatt/c_api.h").read_text(encoding="utf-8"))
STRUCTS = {
    "run": _library.Run,
    "prediction": _library.Prediction,
    "heads": _library.Heads,
    "output": _library.Output,
    "call": _library.Call,
    "setting": _library.Setting,
    "prompt": _library.Prompt,
    "calibration": _library.Calibration,
    "masks": _library.Masks,
    "attention_call": _library.AttentionCall,
}
failures = []


def expect_same(what, ours, theirs):
    if ours != theirs:
        failures.append(f"layout_test: {what}: the mirror has {ours}, the header {theirs}")


def check_names():
    expect_same("structs", sorted(STRUCTS), sorted(re.findall(r"typedef struct calibatt_(\w+) \{", HEADER)))
    expect_same("functions", sorted(_library.FUNCTIONS), sorted(re.findall(r"CALIBATT_API[^;]*?calibatt_(\w+)\(", HEADER)))
    expect_same("version", _library.ABI_VERSION, int(re.search(r"CALIBATT_ABI_VERSION (\d+)", HEADER)[1]))
    expect_same("no guidance", _library.UNGUIDED, float(re.search(r"CALIBATT_UNGUIDED \(([-.\d]+)\)", HEADER)[1]))


def check_functions():
    """They take as many arguments and return alike."""
    text = " ".join(HEADER.split())
    for name, (result, arguments) in _library.FUNCTIONS.items():
        returns, parameters = re.search(rf"CALIBATT_API ([^;]*?)\s?calibatt_{name}\(([^;]*?)\);", text).groups()
        expect_same(f"arguments of {name}", len(arguments), 0 if parameters == "void" else parameters.count(",") + 1)
        expect_same(f"{name} returns a status", name not in _library.VALUES, returns == "calibatt_status")
        expect_same(f"{name} returns nothing", result is None, returns == "void")


def check_layout():
    lines, mirrored = ['#include <stdio.h>\n#include "calibatt/c_api.h"\nint main(void) {'], []
    for name, struct in STRUCTS.items():
        lines.append(f'printf("{name} %zu\\n", sizeof(calibatt_{name}));')
        mirrored.append(f"{name} {ctypes.sizeof(struct)}")
        for field, _ in struct._fields_:
            place = getattr(struct, field)
            mirrored.append(f"{name}.{field} {place.offset} {place.size}")
            lines.append(f'printf("{name}.{field} %zu %zu\\n", offsetof(calibatt_{name}, {field}), sizeof(((calibatt_{name}*)0)->{field}));')
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder) / "layout.c", Path(folder) / "layout"
        source.write_text("\n".join([*lines, "return 0; }"]))
        subprocess.run([COMPILER, "-x", "c", "-std=c11", "-Wall", "-Werror", f"-I{ROOT / 'include'}", str(source), "-o", str(program)], check=True)
        compiled = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout.split("\n")[:-1]
    for ours, theirs in zip(mirrored, compiled):
        expect_same("size, or place and size", ours, theirs)


check_names()
check_functions()
check_layout()
sys.exit("\n".join(failures) or None)
