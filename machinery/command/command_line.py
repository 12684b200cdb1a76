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
import json
import os
import re
from pathlib import Path
from typing import get_type_hints

import yaml
from trl import TrlParser

from ..common.bounds import check_file
from ..common.errors import UserError
from ..common.masking import remember_secrets
from .flag_checks import check_path

MOST_BYTES, MOST_VALUES = 2**18, 10_000  # of a recipe; those of the project have some twenty values


class CommandLine(TrlParser):
    """TRL's parser, read in two steps so that defaults can depend on what the user said."""

    def __init__(self, dataclass_types, description: str, flags: dict[str, str]):
        """flags: the flags that --help shows, each with its effect; --help_all shows every flag."""
        super().__init__(dataclass_types, add_help=False, allow_abbrev=False)  # what hides a token knows whole names
        self.description_text, self.flags = description.strip(), flags
        self.argv: list[str] = []
        self.recipe: dict = {}
        self.recipe_file: str | None = None
        for action in self._actions:
            if action.dest == "resume_from_checkpoint":
                action.nargs, action.const = "?", "newest"  # TRL wants a value; a user who gives none means the newest
            if getattr(action.type, "__name__", "") == "dict":  # which takes no text
                action.type = _object

    def error(self, message: str):
        message = re.sub(r"/--[\w-]+", "", message).rstrip(".")  # the second spelling of a flag tells nobody anything
        raise ValueError(message[:1].upper() + message[1:] + ". See --help.")

    def _check_value(self, action, value):
        """As argparse does, but with the nearest choice instead of fifty."""
        nearest = difflib.get_close_matches(str(value), map(str, action.choices or ()), n=1)
        if action.choices is not None and value not in action.choices and nearest:
            raise argparse.ArgumentError(action, f"{value!r} is not known: did you mean {nearest[0]}?")
        super()._check_value(action, value)

    def read(self, argv: list[str]) -> argparse.Namespace:
        """Read recipe and flags, refuse unknown ones; returns all values as the user or the defaults have them."""
        if {"-h", "--help", "--help_all"} & set(argv):
            print(self._everything() if "--help_all" in argv else self._what_matters())
            raise SystemExit(0)
        self.argv, recipe, path = read_recipe(argv)
        self.recipe_file = path
        actions = {action.dest: action for action in reversed(self._actions)}  # of --bf16 and --no_bf16 the first
        for name, value in recipe.items():
            if name not in actions:
                self._refuse(f"--{name}", f"--config {path}: ")
            self.recipe[name] = self._as_said(actions[name], value, f"--config {path}: {name}")
        self.set_defaults_with_config(**self.recipe)
        flags = self._flags()
        for name, action in actions.items():
            if action.nargs in ("+", "*") and flags.count(name) > 1:  # the last one would hold alone
                raise ValueError(f"--{name} stands twice: give all its values after one, as in --{name} A B.")
        said, rest = self.parse_known_args(self.argv)
        for flag in (word for word in rest if word.startswith("--")):
            self._refuse(flag.split("=")[0])
        if rest:
            raise ValueError(f"{rest[0]!r} on the command line belongs to no flag.")
        return said

    def fill(self, defaults: dict) -> None:
        """Set defaults for what neither the command line nor the recipe says."""
        self.set_defaults_with_config(**{name: value for name, value in defaults.items() if name not in self.recipe})

    def given(self) -> set[str]:
        """The names of what the command line and the recipe say."""
        known = {action.dest for action in self._actions}
        return {flag if flag in known else flag.removeprefix("no_") for flag in self._flags()} | set(self.recipe)

    def _flags(self) -> list[str]:
        """The names on the command line, with underscores: it may have hyphens."""
        return [word[2:].split("=")[0].replace("-", "_") for word in self.argv if word.startswith("--")]

    def values(self) -> dict:
        """What all flags are set to so far."""
        return vars(self.parse_known_args(self.argv)[0])

    def build(self) -> tuple:
        """The dataclasses; what they refuse is a ValueError too."""
        try:
            return self.parse_args_into_dataclasses(self.argv, look_for_args_file=False)
        except json.JSONDecodeError as error:
            said = [*zip(self.argv[1:], self.argv, strict=False), *((v, f"--{k}") for k, v in self.recipe.items())]
            flag = next((name for value, name in said if value == error.doc), "A value")
            raise ValueError(f"{flag} {error.doc} is not JSON: {error.msg}, column {error.colno}") from error
        except (TypeError, AttributeError, ArithmeticError, ImportError, NotImplementedError) as error:
            raise ValueError(str(error).strip(". ")) from error

    def _as_said(self, action: argparse.Action, value, where: str):
        """A recipe's value as if it stood on the command line, where argparse looks at type and choices."""
        hints = {name: str(hint) for owner in self.dataclass_types for name, hint in get_type_hints(owner).items()}
        types = hints.get(action.dest, "")
        is_mixture = action.dest == "datasets" and isinstance(value, list) and all(isinstance(v, dict) for v in value)
        is_none = value is None and ("None" in types or "Optional" in types)
        if is_none or is_mixture or (isinstance(value, dict) and "dict" in types):
            return value
        if value is False and "no" in (action.choices or ()):
            return "no"  # YAML reads the word as false
        takes_list = action.nargs == "+"
        values = value if takes_list and isinstance(value, list) and value else [value]
        for part in values:
            if isinstance(part, (list, dict)) or part is None:
                kind = {list: "a list", dict: "a mapping"}.get(type(part), "empty")
                raise ValueError(f"{where} is {kind}, and wants {'names or numbers' if takes_list else 'one value'}.")
            if "\0" in str(part):
                raise ValueError(f"{where} holds a character that no name has (code 0).")
        try:
            return self._get_values(action, [str(part) for part in values])
        except argparse.ArgumentError as error:
            raise ValueError(f"{where}: {error.message.rstrip('.')}.") from error

    def _refuse(self, flag: str, where: str = ""):
        known = {name for name in self._option_string_actions if "-" not in name[2:]}
        nearest = difflib.get_close_matches(flag.replace("-", "_").replace("__", "--", 1), known, n=1)
        raise ValueError(
            f"{where}There is no flag {flag}: " + (f"did you mean {nearest[0]}?" if nearest else "see --help_all.")
        )

    def _what_matters(self) -> str:
        lines = [self.description_text, "", "Flags, named as in TRL and Transformers:"]
        return "\n".join([*lines, *(f"  --{flag:<28} {effect}" for flag, effect in self.flags.items())])

    def _everything(self) -> str:
        return self.description_text + "\n\n" + self.format_help()


def _object(text: str) -> dict:
    """A JSON object on the command line."""
    try:
        if isinstance(content := json.loads(text), dict):
            return content
    except (ValueError, RecursionError):
        pass
    raise argparse.ArgumentTypeError(f'{text} is no JSON object, as in {{"name": true}}')


def read_recipe(argv: list[str]) -> tuple[list[str], dict, str | None]:
    """Take `--config FILE` out of a command line and read the YAML file; its `env` goes into the environment.

    Returns the rest of the command line, the names and values of the file, and its name.
    """
    argv = [part for word in argv for part in (word.split("=", 1) if word.startswith("--config=") else [word])]
    if "--config" not in argv:
        return argv, {}, None
    place = argv.index("--config")
    if place + 1 == len(argv):
        raise ValueError("--config needs the name of a YAML file.")
    path = argv[place + 1]
    if "--config" in argv[place + 2 :]:
        raise ValueError(f"--config stands twice on the command line, the first time with {path}: one recipe is read.")
    check_path("config", path)
    if not Path(path).is_dir() and os.path.lexists(path):
        try:
            check_file(Path(path), MOST_BYTES)
        except UserError as error:
            raise ValueError(f"--config {error}") from error
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        remember_secrets([text])  # before an error can quote a line of it
        recipe = yaml.load(text, Loader=_Recipe)
    except OSError as error:
        raise ValueError(f"--config {path} cannot be read: {error.strerror}.") from error
    except UserError as error:
        raise ValueError(f"--config {path}: {error}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"--config {path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(recipe, dict):
        raise ValueError(f"--config {path} must hold names and values, one a line, as in `beta: 0.1`.")
    for name in recipe:
        if not isinstance(name, str):
            raise ValueError(f"--config {path}: {name!r} is no name of a flag.")
    remember_secrets([], recipe)
    environment = recipe.pop("env", None) or {}
    if not isinstance(environment, dict):
        raise ValueError(f"--config {path}: env must hold names and values, as in `env: {{NCCL_DEBUG: INFO}}`.")
    for name, value in environment.items():
        try:
            os.environ[name] = str(value)
        except (TypeError, ValueError, OSError) as error:
            raise ValueError(f"--config {path}: env cannot set {name!r} ({error}).") from error
    return argv[:place] + argv[place + 2 :], recipe, path


class _Recipe(yaml.SafeLoader):
    """YAML's safe loader, which makes plain values only, with two refusals more.

    No name may stand twice: the first would be lost in silence. And no value may hold more than MOST_VALUES: nine lines
    whose aliases name the line before ten times each are a billion, which is found before any is made.
    """

    def get_single_node(self):
        node = super().get_single_node()
        if node is not None and (found := self._values(node, {})) > MOST_VALUES:
            raise UserError(f"with its aliases written out it would hold {found:,} values, and a recipe has a hundred.")
        return node

    def _values(self, node: yaml.Node, known: dict[yaml.Node, int]) -> int:
        """How many values a node holds with its aliases written out. known: of nodes that were counted; of itself it is 0."""
        if node not in known:
            known[node] = 0
            parts = node.value if isinstance(node, yaml.CollectionNode) else []
            inner = (part for pair in parts for part in (pair if isinstance(pair, tuple) else (pair,)))
            known[node] = 1 + sum(self._values(part, known) for part in inner)
        return known[node]

    def construct_mapping(self, node, deep=False):
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for name in names:
            if names.count(name) > 1 and name != "<<":
                raise yaml.constructor.ConstructorError(None, None, f"{name} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)
