"""One table and one plot of peers.json of several runs (tools/peers/run.py, same seed), and of our own recipes at the same prompts.

    python -m tools.peers.plot out/peers/peers.json … [--tradeoff out/tradeoff/tradeoff.json] -o docs/images/peers.png

Prompts that not every rule ran are left out. --tradeoff: of tools/tradeoff.py, where it ran the same prompts and seeds.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics

OWN = {"ours": "ours", "paper": "CalibAtt"}  # recipes of tools/tradeoff.py that belong here


def rows_of(peers, tradeoff=None):
    """→ prompts, {name: [(density, median dB, worst dB)]}, ours first, then by the median at the largest density."""
    rows = {}
    if len({(each["model"], each["seed"], each["steps"]) for each in peers}) != 1:
        raise SystemExit("these runs are of other models, seeds or steps: they cannot stand in one table")
    peer_rows = [row for each in peers for row in each["rows"]]
    count = min(len(row["each_db"]) for row in peer_rows)
    for recipe, name in OWN.items() if tradeoff else ():
        for row in (each for each in tradeoff["table"] if each["recipe"] == recipe):
            plan = f"{recipe}_{row['target_density']:g}"
            values = [run["psnr_db"] for run in tradeoff["runs"] if run["plan"] == plan and run["prompt"] < count]
            if len(values) == count:
                rows.setdefault(name, []).append((row["density"], statistics.median(values), min(values)))
    for row in peer_rows:
        values = row["each_db"][:count]
        rows.setdefault(row["rule"], []).append((row["density"], statistics.median(values), min(values)))
    for each in rows.values():
        each.sort(reverse=True)
    return count, dict(sorted(rows.items(), key=lambda item: (item[0] != "ours", -item[1][0][1])))


def table(rows):
    lines = ["| rule | density: PSNR to dense in dB, median (worst) |", "|---|---|"]
    lines += [f"| {name} | {' · '.join(f'{density:.2f}: {median:.1f} ({worst:.1f})' for density, median, worst in each)} |" for name, each in rows.items()]
    return "\n".join(lines)


def plot(count, rows, path):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(8.6, 4.8))
    for name, each in rows.items():
        style = {"linestyle": "-", "linewidth": 3, "color": "black"} if name == "ours" else {"linestyle": ":" if "bound" in name else "-"}
        axis.plot([row[0] for row in each], [row[1] for row in each], "o", markersize=4, label=name, **style)
    axis.set_xlabel("density (computed query-key pairs)")
    axis.set_ylabel(f"PSNR to dense, dB (median of {count} prompts)")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peers", type=pathlib.Path, nargs="+")
    parser.add_argument("--tradeoff", type=pathlib.Path)
    parser.add_argument("-o", "--output", type=pathlib.Path, default=pathlib.Path("out/peers/peers.png"))
    args = parser.parse_args()
    tradeoff = json.loads(args.tradeoff.read_text()) if args.tradeoff else None
    count, rows = rows_of([json.loads(path.read_text()) for path in args.peers], tradeoff)
    print(table(rows))
    plot(count, rows, args.output)


if __name__ == "__main__":
    main()
