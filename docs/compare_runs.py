"""The curves of several runs beside each other, on the same scales: what differs is then what the eye sees.

    python docs/compare_runs.py runs/basic runs/too-fast --figure runs/curves.png

Takes the folders of trainings, by any script here or any trainer of Transformers, and reads their trainer_state.json.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from machinery.watching.curves import plot_beside


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders that hold a trainer_state.json")
    parser.add_argument("--figure", type=Path, default=Path("runs/curves.png"), help="where to draw (%(default)s)")
    options = parser.parse_args()
    states = {run: run / "trainer_state.json" for run in options.runs}
    if missing := [str(file) for file in states.values() if not file.is_file()]:
        parser.error(f"there is no {', no '.join(missing)}: a run writes it at its end, and each checkpoint has one")
    histories = {str(run): json.loads(file.read_text(encoding="utf-8"))["log_history"] for run, file in states.items()}
    options.figure.parent.mkdir(parents=True, exist_ok=True)
    plot_beside(histories, options.figure)
    print(f"Drawn: {options.figure}")


if __name__ == "__main__":
    main()
