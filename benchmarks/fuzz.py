"""10,000 damaged inputs of every reader: counts by kind, as a Markdown table (docs/reliability.md).

``python benchmarks/fuzz.py --inputs 10000``. Every input is refused by a ValueError that names the file, or read
rightly (compared with an independent look at it). Whatever does otherwise is written to ``--keep``; put it into
tests/trust/corpus/<kind>/ and mend the reader. The mutations are those of tests/trust/fuzzed.py.
"""

from __future__ import annotations

import argparse
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "trust"))
from fuzzed import KINDS, Undocumented, outcome, prepare


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("build/fuzz"), help="where what goes wrong is kept")
    arguments = parser.parse_args()
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    slowest = dict.fromkeys(KINDS, 0.0)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        prepare(folder)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for number in range(arguments.inputs):
            kind = list(KINDS)[number % len(KINDS)]
            started = time.perf_counter()
            try:
                counts[kind][outcome(kind, folder, random.Random(f"{arguments.seed}/{number}"))] += 1
            except Undocumented as error:
                counts[kind]["other"] += 1
                kept = arguments.keep / kind.replace(" ", "_") / f"{arguments.seed}-{number}"
                kept.parent.mkdir(parents=True, exist_ok=True)
                damaged = next((folder / "damaged").rglob(Path(KINDS[kind][0]).name), None)
                if damaged is not None:
                    kept.write_bytes(damaged.read_bytes())
                print(f"{number}: {error}", file=sys.stderr, flush=True)
            slowest[kind] = max(slowest[kind], time.perf_counter() - started)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10
    print("| input | tried | refused by name | read rightly | other | slowest (s) |\n|---|---|---|---|---|---|")
    for kind, found in counts.items():
        row = [found.total(), found["error"], found["answer"], found["other"]]
        print(f"| {kind} | {' | '.join(f'{n:,}' for n in row)} | {slowest[kind]:.2f} |")
    print(f"\n{arguments.inputs:,} inputs; the process grew by {grown:.0f} MiB at its largest.")
    sys.exit(any(found["other"] for found in counts.values()))


if __name__ == "__main__":
    main()
