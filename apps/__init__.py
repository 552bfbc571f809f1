"""The apps: views over the run directory in a browser."""

if __name__ != "raftdiff.apps":
    raise ImportError("Import this package as raftdiff.apps: under the bare name 'apps' a second copy would be loaded.")
