"""What the tools' plots share."""

import sys


def pyplot_to_files():
    """matplotlib's pyplot, drawing into files; None, and a line that says so, where it is not installed."""
    try:
        import matplotlib
    except ImportError:
        print("no matplotlib: no plot", file=sys.stderr)
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
