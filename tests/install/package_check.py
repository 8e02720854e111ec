"""What the Python package does with nothing but Python: it loads, says what GPU it has, opens plans and computes attention on the CPU.

Usage: package_check.py GOLDEN_DATA_DIR, with calibatt installed, or on PYTHONPATH with CALIBATT_LIBRARY naming its library.
"""
import ctypes
import glob
import math
import os
import random
import re
import subprocess
import sys
import tempfile

import calibatt
from calibatt import _library

golden = sys.argv[1]


def expect(what, condition, seen=""):
    if not condition:
        sys.exit(f"package_check: not so: {what} {seen}")


def check_versions():
    expect("a version like 0.1.0", re.fullmatch(r"\d+\.\d+\.\d+", calibatt.__version__), calibatt.__version__)
    try:
        from importlib.metadata import PackageNotFoundError, version

        expect("library and package are of one version", version("calibatt") == calibatt.__version__, version("calibatt"))
    except PackageNotFoundError:
        expect("only a library that was built by itself has no package", "CALIBATT_LIBRARY" in os.environ)


def check_gpu():
    reason = calibatt.cuda_unavailable_reason()
    expect("it tells whether there is a GPU", calibatt.cuda_available() == (reason is None))
    expect("the reason is one line", reason is None or (len(reason) > 10 and "\n" not in reason), repr(reason))
    print("cuda_available():", reason or "True")


def check_plans():
    paths = sorted(glob.glob(os.path.join(golden, "plan_v*.safetensors")))
    expect("plans of every version are there", len(paths) >= 6, paths)
    for path in paths:
        plan = calibatt.Plan(path)
        expect("its density is one", 0 < plan.density <= 1, plan)
        expect("every step and layer has a density", len(plan.density_map) == len(plan.sigmas)
               and all(len(row) == plan.num_layers for row in plan.density_map), plan)
        expect("it is described", f"{plan.density:.4f} of all query-key pairs" in plan.describe(), plan.describe())
    with tempfile.TemporaryDirectory() as folder:
        short = os.path.join(folder, "short.safetensors")
        with open(paths[0], "rb") as whole, open(short, "wb") as file:
            file.write(whole.read()[:-7])
        for path, kind in ((short, calibatt.FormatError), (os.path.join(folder, "none"), calibatt.NotFound)):
            try:
                calibatt.Plan(path)
                expect(f"{path} is refused", False)
            except kind as error:
                expect("the refusal is one line that names the file", path in str(error) and "\n" not in str(error), error)


def check_editable():
    """`pip install -e .` leaves the Python files in the source and puts the library among the environment's packages."""
    package, library = os.path.dirname(calibatt.__file__), str(_library.loaded().path)
    if os.path.dirname(library) == package:
        return  # the wheel's
    told = "import calibatt; from calibatt import _library; print(calibatt.__file__, _library.loaded().path)"
    with tempfile.TemporaryDirectory() as site:
        environment = {name: value for name, value in os.environ.items() if name != "CALIBATT_LIBRARY"}
        environment["PYTHONPATH"] = os.pathsep.join([os.path.dirname(package), site])
        alone = subprocess.run([sys.executable, "-c", told], env=environment, capture_output=True, text=True)
        expect("without one it says how to get one", alone.returncode and "build one with `make`" in alone.stderr.splitlines()[-1], alone.stderr)
        os.makedirs(os.path.join(site, "calibatt"))
        os.symlink(library, os.path.join(site, "calibatt", "libcalibatt.so"))
        facts = os.path.join(site, "calibatt-0.1.0.dist-info")
        os.makedirs(facts)
        for name, text in (("METADATA", "Metadata-Version: 2.1\nName: calibatt\nVersion: 0.1.0\n"), ("RECORD", "calibatt/libcalibatt.so,,\n")):
            with open(os.path.join(facts, name), "w") as file:
                file.write(text)
        found = subprocess.run([sys.executable, "-c", told], env=environment, capture_output=True, text=True)
        expect("the library is found", found.stdout.split() == [calibatt.__file__, os.path.join(site, "calibatt/libcalibatt.so")], found)


def attention(q, k, v, kept, block, tokens, heads, dim):
    """[tokens, heads, dim] as a flat list, by the definition; kept[query block][key block]."""
    out = []
    at = lambda x, t, h: x[(t * heads + h) * dim:(t * heads + h + 1) * dim]
    for t in range(tokens):
        for h in range(heads):
            keys = [s for s in range(tokens) if kept[t // block][s // block]]
            scores = [sum(a * b for a, b in zip(at(q, t, h), at(k, s, h))) / math.sqrt(dim) for s in keys]
            largest = max(scores)
            weights = [math.exp(x - largest) for x in scores]
            values = [at(v, s, h) for s in keys]
            out += [sum(w * x[c] for w, x in zip(weights, values)) / sum(weights) for c in range(dim)]
    return out


def check_attention():
    tokens, heads, dim, block = 45, 2, 32, 8  # a last block of 5
    blocks = -(-tokens // block)
    numbers = random.Random(1)
    q, k, v = ([numbers.gauss(0, 1) for _ in range(tokens * heads * dim)] for _ in range(3))
    kept = [[r == c or numbers.random() < 0.4 for c in range(blocks)] for r in range(blocks)]

    library = _library.loaded()
    mask = (ctypes.c_uint8 * (heads * blocks * blocks))(*[int(kept[r][c]) for _ in range(heads) for r in range(blocks) for c in range(blocks)])
    masks = _library.Masks(struct_size=ctypes.sizeof(_library.Masks), device=_library.CPU, num_heads=heads, num_queries=tokens, num_keys=tokens,
                           block_q=block, block_k=block, kept=mask)
    schedule = ctypes.c_void_p()
    library.schedule_make(ctypes.byref(masks), ctypes.byref(schedule))

    buffers = [(ctypes.c_float * len(q))(*x) for x in (q, k, v, [math.nan] * len(q))]
    views = [_library.Heads(ctypes.addressof(x), tokens * heads * dim, heads * dim, dim) for x in buffers]
    call = _library.AttentionCall(struct_size=ctypes.sizeof(_library.AttentionCall), device=_library.CPU, dtype=_library.F32, q=views[0], k=views[1],
                                  v=views[2], out=views[3], batch=1, num_heads=heads, head_dim=dim, num_queries=tokens, num_keys=tokens,
                                  block_q=block, block_k=block, scale=1 / math.sqrt(dim), schedule=schedule)
    library.attention(ctypes.byref(call))
    library.schedule_free(schedule)
    expected = attention(q, k, v, kept, block, tokens, heads, dim)
    worst = max(abs(a - b) for a, b in zip(buffers[3], expected))
    expect("attention by masks is what its definition says", worst < 1e-5, worst)  # float32 sums of some 20 terms below 4


check_versions()
check_gpu()
check_plans()
check_editable()
check_attention()
print(f"calibatt {calibatt.__version__} works on Python {sys.version.split()[0]}: {_library.loaded().path}")
