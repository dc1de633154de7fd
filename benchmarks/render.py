"""Makes the pages of benchmark results again from their JSON, after a change of how a page looks.

    python -m benchmarks.render [NAME ...] [check=1] [out=benchmarks/results]

NAME is the name of a page, such as evaluate or frozen_1e6_rows; without one, all pages that have JSON are made.
check=1 writes nothing, and exits with 1 if a page differs from what its JSON makes.
"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.results_file import FOLDER, Results
from learn_rank.durable import write_text


def main(words: list[str]) -> int:
    """Returns the exit status. ValueError: no JSON of that name, or JSON that holds no results of a benchmark."""
    given = dict(word.split("=", 1) for word in words if "=" in word)
    if unknown := given.keys() - {"check", "out"}:
        raise ValueError(f"{', '.join(sorted(unknown))}: no option of this command, which has check= and out=")
    folder, names = Path(given.get("out", FOLDER)), [word for word in words if "=" not in word]
    known = sorted(path.stem for path in folder.glob("*.json"))
    if missing := [name for name in names if name not in known]:
        raise ValueError(f"{folder} has no {missing[0]}.json; it has {', '.join(known) or 'none'}")
    differing = []
    for name in names or known:
        page, path = Results.read(folder / f"{name}.json").markdown(), folder / f"{name}.md"
        if path.is_file() and path.read_text(encoding="utf-8") == page:
            continue
        differing.append(name)
        if given.get("check") != "1":
            write_text(path, page)
    print(f"{len(differing)} of {len(names or known)} pages differed from their JSON: {', '.join(differing) or 'none'}")
    return int(given.get("check") == "1" and bool(differing))


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except ValueError as error:
        sys.exit(f"{error}")
