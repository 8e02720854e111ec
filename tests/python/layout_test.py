"""The ctypes mirror against the header: sizes and offsets of every member, and every function, as a C compiler sees them."""

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from calibatt import _library

ROOT = Path(__file__).resolve().parents[2]
HEADER = ROOT / "include/calibatt/c_api.h"
STRUCTS = {
    "run": _library.Run,
    "heads": _library.Heads,
    "output": _library.Output,
    "call": _library.Call,
    "setting": _library.Setting,
    "prompt": _library.Prompt,
    "calibration": _library.Calibration,
    "masks": _library.Masks,
    "attention_call": _library.AttentionCall,
}


def header_text():
    return re.sub(r"//.*", "", HEADER.read_text(encoding="utf-8"))


def test_every_struct_and_function_is_mirrored():
    text = header_text()
    assert set(re.findall(r"typedef struct calibatt_(\w+) \{", text)) == set(STRUCTS)
    assert set(re.findall(r"CALIBATT_API[^;]*?calibatt_(\w+)\(", text)) == set(_library.FUNCTIONS)
    assert int(re.search(r"CALIBATT_ABI_VERSION (\d+)", text)[1]) == _library.ABI_VERSION


def test_functions_take_as_many_arguments_and_return_alike():
    text = " ".join(header_text().split())
    for name, (result, arguments) in _library.FUNCTIONS.items():
        returns, parameters = re.search(rf"CALIBATT_API ([^;]*?)\s?calibatt_{name}\(([^;]*?)\);", text).groups()
        assert len(arguments) == (0 if parameters == "void" else parameters.count(",") + 1), name
        assert (returns == "calibatt_status") == (name not in _library.VALUES), name
        assert (returns == "void") == (result is None), name


@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")
def test_layout_is_the_compilers(tmp_path):
    lines = ['#include <stdio.h>\n#include "calibatt/c_api.h"\nint main(void) {']
    for name, struct in STRUCTS.items():
        lines.append(f'printf("{name} %zu\\n", sizeof(calibatt_{name}));')
        for field, _ in struct._fields_:
            member = f"((calibatt_{name}*)0)->{field}"
            lines.append(f'printf("{name}.{field} %zu %zu\\n", offsetof(calibatt_{name}, {field}), sizeof({member}));')
    source = tmp_path / "layout.c"
    source.write_text("\n".join([*lines, "return 0; }"]))
    program = tmp_path / "layout"
    subprocess.run(["cc", "-std=c11", "-Wall", "-Werror", f"-I{ROOT / 'include'}", str(source), "-o", str(program)], check=True)
    compiled = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout.split("\n")
    mirrored = []
    for name, struct in STRUCTS.items():
        mirrored.append(f"{name} {ctypes.sizeof(struct)}")
        mirrored += [f"{name}.{field} {getattr(struct, field).offset} {getattr(struct, field).size}" for field, _ in struct._fields_]
    assert compiled[:-1] == mirrored

