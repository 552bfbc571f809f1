"""The apps: views over the run directory in a browser.

``compare``, ``watch`` and ``label`` each build a page; ``page`` opens it to this machine.
"""

if __name__ != "raftdiff.apps":
    raise ImportError("Import this package as raftdiff.apps: under the bare name 'apps' a second copy would be loaded.")
