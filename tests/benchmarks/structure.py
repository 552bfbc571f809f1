"""The structure of the code, counted from its imports: rooms, floors, arrows, circles.

    python tests/benchmarks/structure.py            # the table of docs/architecture.md
    python tests/benchmarks/structure.py --rooms    # and every package with the modules that stand in it

An arrow is an import of one module by another, wherever it stands in the file. A package is drawn from inside: the
parts are the modules that stand directly in it and the packages in it, each as one, and an arrow between two parts is
any import between what stands in them. The floors are the parts of the longest chain of arrows; parts on a circle count
as one.
"""

import argparse
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

DRAWN = ("raftdiff", "raftdiff.llm", "raftdiff.diffusion")
ROOT = Path(__file__).parents[2]
Graph = Mapping[str, frozenset[str]]


def imports(package: str = "raftdiff") -> Graph:
    """Each module with those of the package that it imports, anywhere in the file. A package's own ``__init__`` is a
    module of the room that it opens, left out where it imports nothing."""
    import grimp

    found = grimp.build_graph(package, cache_dir=None)
    return {name: frozenset(found.find_modules_directly_imported_by(name)) for name in sorted(found.modules)}


def packages(graph: Graph) -> frozenset[str]:
    """Those modules that others stand in."""
    return frozenset(name.rpartition(".")[0] for name in graph if "." in name)


def inside(graph: Graph, package: str) -> Graph:
    """The arrows within a package, drawn between what stands directly in it: its modules, and its packages as one."""
    depth = package.count(".") + 2

    def part(name: str) -> str:
        return ".".join(name.split(".")[:depth])

    found: dict[str, set[str]] = {part(name): set() for name in graph if name.startswith(f"{package}.")}
    for name, targets in graph.items():
        if part(name) in found:
            found[part(name)] |= {part(target) for target in targets if part(target) in found}
    return {name: frozenset(targets - {name}) for name, targets in found.items()}


def held(graph: Graph) -> dict[str, list[str]]:
    """Each package with the modules that stand directly in it."""
    known = packages(graph)
    return {name: [one for one in graph if one not in known and one.rpartition(".")[0] == name] for name in known}


def circles(graph: Graph) -> list[list[str]]:
    """The sets of modules each of which imports, directly or through others, every other one (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for target in sorted(graph[name]):
            if target not in index:
                visit(target)
                low[name] = min(low[name], low[target])
            elif target in stack:
                low[name] = min(low[name], index[target])
        if low[name] == index[name]:
            part = [stack.pop()]
            while part[-1] != name:
                part.append(stack.pop())
            found.append(sorted(part))

    sys.setrecursionlimit(10_000)
    for name in graph:
        if name not in index:
            visit(name)
    return [part for part in found if len(part) > 1]


def longest_chain(graph: Graph) -> list[str]:
    """The longest way down the arrows; of a circle, one module stands for all."""
    stands = {name: part[0] for part in circles(graph) for name in part}
    merged: dict[str, set[str]] = {}
    for name, targets in graph.items():
        mine = stands.get(name, name)
        merged.setdefault(mine, set()).update(stands.get(target, target) for target in targets)

    @cache
    def below(name: str) -> tuple[str, ...]:
        ways = [below(target) for target in sorted(merged[name] - {name})]
        return (name, *max(ways, key=len, default=()))

    return list(max((below(name) for name in sorted(merged)), key=len))


def counted(graph: Graph) -> dict[str, int]:
    """The figures of ``docs/architecture.md``."""
    largest = max(len(modules) for name, modules in held(graph).items() if name != "raftdiff.rewards")
    found = {"modules": len(graph) - len(packages(graph)), "packages": len(packages(graph))}
    found["modules in the largest package but rewards"] = largest
    for name, drawn in (("all modules", graph), *((name, inside(graph, name)) for name in DRAWN)):
        found[f"{name}: parts"] = len(drawn)
        found[f"{name}: arrows"] = sum(map(len, drawn.values()))
        found[f"{name}: floors"] = len(longest_chain(drawn))
        found[f"{name}: circles"] = len(circles(drawn))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rooms", action="store_true", help="every package with its modules")
    parser.add_argument("--root", type=Path, default=ROOT, help="a checkout; this one by default")
    args = parser.parse_args()
    sys.path.insert(0, str(args.root))
    graph = imports()
    if args.rooms:
        for name, modules in sorted(held(graph).items()):
            print(f"{name}: {len(modules)}: {', '.join(one.rpartition('.')[2] for one in modules)}")
    for figure, value in counted(graph).items():
        print(f"{figure:48}{value:6}")
    for name, drawn in (("all modules", graph), *((name, inside(graph, name)) for name in DRAWN)):
        print(f"longest chain, {name}: {' > '.join(one.removeprefix('raftdiff.') for one in longest_chain(drawn))}")
        for part in circles(drawn):
            print(f"circle, {name}: {', '.join(part)}")


if __name__ == "__main__":
    main()
