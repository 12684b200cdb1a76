"""What a user, a file or a machine can get wrong, case by case: exit code, seconds, what was said, what was left.

    python tests/bad_inputs.py                       # all of them, one after the other: about twenty minutes
    python tests/bad_inputs.py lr_ optim             # those whose names have one of these words
    python tests/bad_inputs.py --table table.jsonl   # a line of JSON for each as well

Tried are every flag with values that it cannot have, on a run of one step (wrong_values.py), the cases of
command/test_bad_input.py, and what the machine, another program or an earlier run does to a run (machine_faults.py). A
wrong value may end with exit code 2 and a sentence, or do no harm and be taken (0). It ends with 1 where there was
another exit code, a traceback, a refusal or a fault without its sentence, a run that was ended after a minute, a file
that was there and changed, one that a refusal left behind, or a secret in a file.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

from command.test_bad_input import CASES, write
from fork_server import ForkServer
from machine_faults import FAULTS
from trials import Trial, attempt
from wrong_values import BY_KIND, ENVIRONMENTS, MORE, PAIRS, SCRIPTS, SHORT


def all_trials() -> dict[str, Trial]:
    """The trials by name: the flag and the value, cut where it is long."""
    cases, some_pairs = {}, write("pairs.jsonl", PAIRS)

    def add(flag: str, value, *more: str) -> None:
        names = [word for word in more if word in SCRIPTS]
        script, words = SCRIPTS[names[0]] if names else ("basic_dpo_training", SHORT)
        rest = [word for word in more if word not in SCRIPTS]
        shown = str(value) if len(str(value)) <= 40 else f"{str(value)[:20]}...{str(value)[-9:]} ({len(str(value))})"
        name = " ".join([flag, shown, *rest, *names])
        if name in cases:
            raise ValueError(f"two trials are called {name}")
        cases[name] = Trial(script, [*words, f"--{flag}", str(value), *rest], make=some_pairs)

    for values, flags in BY_KIND.values():
        for flag in flags.split():
            for value in values:
                add(flag, value)
    for flag, more in MORE.items():
        for value, *rest in more:
            add(flag, value, *rest)
    for name, environment in ENVIRONMENTS.items():
        cases[name] = Trial("basic_dpo_training", SHORT, environment, some_pairs)
    for name, case in CASES.items():
        words = case.words.split() if isinstance(case.words, str) else case.words
        cases[f"{name} ({case.script})"] = Trial(
            case.script, list(map(str, words)), case.environment, case.make, case.says
        )
    return cases | FAULTS


def shown(name: str, found: dict) -> str:
    said = " ".join(found["said"].split())[-160:] if found["code"] else ""
    marks = {"left": "left", "changed": "CHANGED", "missing": "NOT SAID", "betrayed": "HELD BY"}
    rest = "".join(f"  {mark}: {', '.join(found[key])}" for key, mark in marks.items() if found[key])
    return f"{'BAD ' if found['bad'] else '    '}{found['code']:>3} {found['seconds']:>5} s  {name}  {said}{rest}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="parts of names")
    parser.add_argument("--after", help="begin after this trial")
    parser.add_argument("--table", help="a file for a line of JSON each")
    options = parser.parse_args()
    trials = {
        name: trial
        for name, trial in all_trials().items()
        if not options.words or any(word in name for word in options.words)
    }
    if options.after:
        names = list(trials)
        trials = {name: trials[name] for name in names[names.index(options.after) + 1 :]}
    server, bad, slowest = ForkServer(), 0, 0.0
    attempt(server, Trial("basic_dpo_training", ["--beta", "-1"]))  # until the server has imported everything
    for name, trial in trials.items():
        found = attempt(server, trial)
        bad += found["bad"]
        slowest = max(slowest, found["seconds"])
        print(shown(name, found), flush=True)
        if options.table:
            with open(options.table, "a", encoding="utf-8") as file:
                file.write(json.dumps({"name": name, "script": trial.script} | found) + "\n")
    server.close()
    print(f"{len(trials)} trials, {bad} of them ended badly; the slowest took {slowest:.0f} s.")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
