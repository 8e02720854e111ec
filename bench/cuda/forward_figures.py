"""What forward.py's report says: ratios within rounds, shares and peaks, beside their targets."""

import statistics

from attention import quartiles

OURS, DENSE, PLANNED = "ours, ", "ours, dense", "ours, planned"
EIGHT_BITS = ", 8 bits"  # behind these
MAX_ERROR_RATIO = 1.1


def fastest_of_diffusers(times):
    return min(time["s"] for name, time in times.items() if name.startswith("diffusers"))


def make_figures(report, targets):
    """targets: for each model what a dense, a planned and a planned forward in 8 bits must reach over diffusers."""
    result = []

    def figure(name, value, unit, target=None, better="lower", **more):
        ok = None if target is None else (value <= target if better == "lower" else value >= target)
        value = round(value, 4)
        result.append({"name": name, "value": value, "unit": unit, "target": target, "ok": ok, "better": better, **more})

    for model, entry in report["models"].items():
        errors, layers, dtype = entry["errors"], entry["layers"], report["dtype"]
        for kind, label in (("", ""), (", planned", ", same masks")) if errors else ():
            theirs = errors[f"diffusers {dtype}{kind}"]
            ratio = errors[f"ours{kind}"] / theirs
            figure(f"{dtype} error over diffusers' {dtype} error{label}, {model}", ratio, "ratio", MAX_ERROR_RATIO, layers=layers)
            if f"ours{kind}{EIGHT_BITS}" in errors:
                ratio = errors[f"ours{kind}{EIGHT_BITS}"] / theirs
                figure(f"8-bit error over diffusers' {dtype} error{label}, {model}", ratio, "ratio", layers=layers)
        rounds = [r["times"] for r in entry["rounds"]]
        rounds = [times for times in rounds if any(n.startswith("diffusers") for n in times)]
        if not rounds:
            continue
        labels = ("dense over diffusers' fastest", "planned over diffusers' fastest dense", "planned in 8 bits over diffusers' fastest dense")
        for ours, label, target in zip((DENSE, PLANNED, PLANNED + EIGHT_BITS), labels, targets[model], strict=True):
            ratios = [fastest_of_diffusers(times) / times[ours]["s"] for times in rounds if ours in times]
            if ratios:
                low, value, high = quartiles(ratios)
                spread = {"quartiles": [round(low, 4), round(high, 4)], "rounds": len(ratios), "layers": layers}
                figure(f"{label}, {model}", value, "ratio", target, "higher", **spread)
        for ours in (DENSE, PLANNED, PLANNED + EIGHT_BITS):
            shares = [1 - times[ours]["attention_seconds"] / times[ours]["s"] for times in rounds if ours in times]
            if shares:
                figure(f"share outside attention, {ours}, {model}", statistics.median(shares), "ratio", layers=layers)
        for ours in (DENSE, PLANNED):
            shares = [times[ours]["enqueue_seconds"] / times[ours]["s"] for times in rounds if ours in times]
            if shares:
                figure(f"share of the forward in which the host enqueues, {ours}, {model}", statistics.median(shares), "ratio", layers=layers)
        if PLANNED in rounds[0]:
            figure(f"density of the plan, {model}", rounds[0][PLANNED]["density"], "ratio")
        for name in sorted(rounds[0]):
            seconds = statistics.median(times[name]["s"] for times in rounds)
            whole = seconds * entry["layers_of_public_model"] / layers
            figure(f"seconds, {name}, {model}, {layers} layers", seconds, "s")
            # What is outside the layers (embeddings, last projection) is scaled with them: below a hundredth of the forward.
            if layers != entry["layers_of_public_model"]:
                figure(f"seconds, {name}, {model}, scaled to {entry['layers_of_public_model']} layers", whole, "s")
        for name, peak in entry["peak_gb"].items():
            figure(f"peak memory, {name}, {model}, {layers} layers", peak, "GB")
    return result
