"""How other methods choose what attention to compute, on tiny-wan, at equal density. `python -m tools.peers --help`"""
