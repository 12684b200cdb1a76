"""How near do length-controlled rates come to those that AlpacaEval 2 publishes, and which prior comes nearest?

    python benchmarks/length_control.py annotations.jsonl             # distances with the prior for language models
    python benchmarks/length_control.py annotations.jsonl --choose    # and the prior that other models would choose

The file has a line a model: {"model": ..., "length_controlled": its published rate in percent, "rows": [[question,
preference for the model from 0 to 1 or null, characters of the baseline's answer, characters of the model's], ...]}.
The published rates use a term for each question's difficulty, which needs many models on the same questions; here a
model stands alone, as it does in an evaluation of yours.

--choose takes half of the models at random, finds the mean and the width of the prior that come nearest to their
published rates, and measures the distance on the other half; many times over.
"""

import argparse
import json
import sys
from collections import Counter
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from machinery.common.intervals import LANGUAGE_MODEL_JUDGE, SlopePrior, length_controlled_rate, length_shift

MEANS = [round(0.1 * tenths, 1) for tenths in range(0, 23, 2)]
WIDTHS = [0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0]
SPLITS = 1000


class Model(NamedTuple):
    name: str
    wins: np.ndarray  # 0 to 1, one a question
    longer_by: np.ndarray  # characters, one a question
    published: float  # 0 to 1


def read(path: Path) -> list[Model]:
    """One entry a model; questions that were not judged are left out."""
    models = []
    for line in path.read_text().splitlines():
        entry = json.loads(line)
        rows = np.array([row for row in entry["rows"] if row[1] is not None], dtype=float)  # (questions, 4)
        longer_by = rows[:, 3] - rows[:, 2]
        models.append(Model(entry["model"], rows[:, 1], longer_by, entry["length_controlled"] / 100))
    return models


def distances(models: list[Model], prior: SlopePrior) -> np.ndarray:
    """Points between each model's length-controlled rate and the published one."""
    rates = [length_controlled_rate(model.wins, model.longer_by, prior)[0] for model in models]
    return 100 * abs(np.array(rates) - [model.published for model in models])


def choose(models: list[Model], seed: int = 0) -> None:
    """Print which prior halves of the models choose, and how far it is off on the other halves."""
    priors = [SlopePrior(mean, sd) for mean, sd in product(MEANS, WIDTHS)]
    table = np.array([distances(models, prior) for prior in tqdm(priors, leave=False)])  # (priors, models)
    rng, chosen, left_out = np.random.default_rng(seed), Counter(), []
    for _ in range(SPLITS):
        order = rng.permutation(len(models))
        half, others = order[: len(models) // 2], order[len(models) // 2 :]
        nearest = table[:, half].mean(axis=1).argmin()
        chosen[priors[nearest]] += 1
        left_out.append(table[nearest, others].mean())
    low, high = np.quantile(left_out, [0.025, 0.975])
    print(
        f"chosen on half of the models, on the others: {np.mean(left_out):.2f} points (95% of splits {low:.2f} to {high:.2f})"
    )
    for prior, count in chosen.most_common(5):
        print(f"  mean {prior.mean:.1f}, sd {prior.sd:.2f} chosen by {count / SPLITS:.0%} of the halves")


def main() -> None:
    """Print mean and largest distance of raw and length-controlled rates, over all models and by shift of length."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("annotations", type=Path)
    parser.add_argument("--choose", action="store_true")
    options = parser.parse_args()
    models = read(options.annotations)
    shifts = abs(np.array([length_shift(model.longer_by) for model in models]))
    groups = {"all": shifts >= 0, "shift up to 1": shifts <= 1, "above 1": shifts > 1}
    raw = 100 * abs(np.array([model.wins.mean() - model.published for model in models]))
    print(
        f"{'points from the published rate':<44}"
        + "".join(f"{f'{name} ({mask.sum()})':<22}" for name, mask in groups.items())
    )
    rows = {"raw win rate": raw}
    for label, prior in (("slope free", SlopePrior(0.0, 10.0)), ("prior for language models", LANGUAGE_MODEL_JUDGE)):
        rows[f"{label}, mean {prior.mean:.1f}, sd {prior.sd:g}"] = distances(models, prior)
    for label, off in rows.items():
        cells = [
            f"{off[mask].mean():.1f}, at most {off[mask].max():.1f}" if mask.any() else "-" for mask in groups.values()
        ]
        print(f"{label:<44}" + "".join(f"{cell:<22}" for cell in cells).rstrip())
    if options.choose:
        choose(models)


if __name__ == "__main__":
    main()
