"""Read a command line and a recipe into dataclasses as TRL does, with errors of one sentence and defaults in layers.

    parser = CommandLine((ScriptArguments, DPOConfig, ModelConfig), "What the script does.", {"beta": "what beta does"})
    said = parser.read(["--beta", "0.3", "--config", "recipe.yaml"])   # what the user said, nothing built yet
    parser.fill({"learning_rate": 3e-4})                               # defaults where the user said nothing
    script_args, training_args, model_args = parser.build()

The command line wins over the recipe, the recipe over `fill`, and `fill` over the dataclasses. Everything the user can
get wrong is a ValueError.
"""

import argparse
import difflib
import os
from pathlib import Path

import yaml
from trl import TrlParser


class CommandLine(TrlParser):
    """TRL's parser, read in two steps so that defaults can depend on what the user said."""

    def __init__(self, dataclass_types, description: str, flags: dict[str, str]):
        """flags: the flags that --help shows, each with its effect; --help_all shows every flag."""
        super().__init__(dataclass_types, add_help=False)
        self.description_text, self.flags = description.strip(), flags
        self.argv: list[str] = []
        self.recipe: dict = {}
        for action in self._actions:
            if action.dest == "resume_from_checkpoint":
                action.nargs, action.const = "?", "newest"  # TRL wants a value; a user who gives none means the newest

    def error(self, message: str):
        raise ValueError(message[:1].upper() + message[1:] + ". See --help.")

    def read(self, argv: list[str]) -> argparse.Namespace:
        """Read recipe and flags, refuse unknown ones; returns all values as the user or the defaults have them."""
        if {"-h", "--help", "--help_all"} & set(argv):
            print(self._everything() if "--help_all" in argv else self._what_matters())
            raise SystemExit(0)
        self.argv, self.recipe = read_recipe(argv)
        unknown = self.set_defaults_with_config(**self.recipe)[::2]
        said, rest = self.parse_known_args(self.argv)
        for flag in (*unknown, *(word for word in rest if word.startswith("--"))):
            self._refuse(flag.split("=")[0])
        if rest:
            raise ValueError(f"{rest[0]!r} on the command line belongs to no flag.")
        return said

    def fill(self, defaults: dict) -> None:
        """Set defaults for what neither the command line nor the recipe says."""
        self.set_defaults_with_config(**{name: value for name, value in defaults.items() if name not in self.recipe})

    def value(self, name: str):
        """What a flag is set to so far."""
        return getattr(self.parse_known_args(self.argv)[0], name)

    def build(self) -> tuple:
        """The dataclasses; what they refuse is a ValueError too."""
        try:
            return self.parse_args_into_dataclasses(self.argv, look_for_args_file=False)
        except (TypeError, ImportError, NotImplementedError) as error:
            raise ValueError(str(error)) from error

    def _refuse(self, flag: str):
        known = {name for name in self._option_string_actions if "-" not in name[2:]}
        nearest = difflib.get_close_matches(flag.replace("-", "_").replace("__", "--", 1), known, n=1)
        raise ValueError(
            f"There is no flag {flag}: " + (f"did you mean {nearest[0]}?" if nearest else "see --help_all.")
        )

    def _what_matters(self) -> str:
        lines = [self.description_text, "", "Flags, named as in TRL and Transformers:"]
        return "\n".join([*lines, *(f"  --{flag:<28} {effect}" for flag, effect in self.flags.items())])

    def _everything(self) -> str:
        return self.description_text + "\n\n" + self.format_help()


def read_recipe(argv: list[str]) -> tuple[list[str], dict]:
    """Take `--config FILE` out of a command line and read the YAML file; its `env` goes into the environment."""
    argv = [part for word in argv for part in (word.split("=", 1) if word.startswith("--config=") else [word])]
    if "--config" not in argv:
        return argv, {}
    place = argv.index("--config")
    if place + 1 == len(argv):
        raise ValueError("--config needs the name of a YAML file.")
    path = argv[place + 1]
    try:
        recipe = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"--config {path} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"--config {path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(recipe, dict):
        raise ValueError(f"--config {path} must hold names and values, one a line, as in `beta: 0.1`.")
    for name, value in (recipe.pop("env", None) or {}).items():
        os.environ[name] = str(value)
    return argv[:place] + argv[place + 2 :], recipe
