"""Our plans in the pipes of the comparison, by the package calibatt (imported only where there is a plan)."""

import contextlib


@contextlib.contextmanager
def applied(pipe, plan):
    """Within it the pipe runs by the plan (None: as it is). Gives a function: the density of the last run's forwards."""
    if plan is None:
        yield lambda: 1.0
        return
    import calibatt

    calibatt.apply(pipe, str(plan), on_mismatch="warn")
    try:
        yield lambda: calibatt.summary(pipe).density_of_run
    finally:
        calibatt.restore(pipe)


def density_of(plan):
    import calibatt

    return calibatt.Plan(str(plan)).density
