"""Who is evaluated, against whom, on which data; and whose answers come from elsewhere, so that no weights are needed.

sources = sources_from_flags(args, training_args, model_args)
sources.names, sources.reference, sources.dataset
prompts, count, answers = sources.answers_of_others(prompts, most_prompts=200, count=4, tokenizer=tokenizer, ...)
answers["my-model"]                                            # by prompt, lists of Answer
"""

import shlex
from dataclasses import dataclass, field
from pathlib import Path

from accelerate import PartialState

from ..common.chat import as_text
from ..common.errors import UserError
from ..common.safe_text import say
from ..comparing.side_by_side import newest_trained, run_facts, train_basic
from ..models.adapters import base_of
from ..models.sharded_weights import check_whole
from .server import AnswerServer, check_server_flags, server_from_flags
from .written import Answer, WrittenAnswers, read_written

TASKS = "hellaswag,arc_challenge,gsm8k"  # of lm-evaluation-harness: common sense, school science, arithmetic


@dataclass
class Sources:
    """The names of models, reference and data, and the answers of those that are not loaded."""

    names: list[str]
    reference: str
    dataset: object
    written: dict[str, WrittenAnswers]  # by the name of the model
    servers: dict[str, AnswerServer]
    notes: list[str] = field(default_factory=list)  # what the report is to say about the answers of others

    def is_local(self, name: str) -> bool:
        """Whether a model is to be loaded and to answer here."""
        return name not in self.written and name not in self.servers

    @property
    def local(self) -> list[str]:
        """The models that are to be loaded, the reference first."""
        return [name for name in dict.fromkeys([self.reference, *self.names]) if self.is_local(name)]

    @property
    def is_all_local(self) -> bool:
        """Whether nobody has answered anything yet."""
        return not self.written and not self.servers

    def benchmarks(self, folder: str | Path) -> str:
        """The lines that run lm-evaluation-harness on the models that are here, one below the other."""
        lines = []
        for name in self.local:
            base = base_of(name)
            weights = f"pretrained={name}" if base is None else f"pretrained={base},peft={name}"
            words = ["lm_eval", "--model", "hf", "--model_args", weights, "--tasks", TASKS, "--batch_size", "auto"]
            lines.append(shlex.join([*words, "--output_path", f"{folder}/benchmarks"]))
        return "\n                  ".join(lines or ["lm_eval on both models: see docs/evaluation.md"])

    def answers_of_others(
        self, prompts: list, *, most_prompts: int, count: int, tokenizer, **settings
    ) -> tuple[list, int, dict[str, list[list[Answer]]]]:
        """The prompts that all of them have answered, how many answers each has, and the answers by model and prompt.

        count: answers wanted of each; files may have fewer. settings: of a server, see `AnswerServer.ask`. Raises
        UserError where a model has answered no prompt.
        """
        for written in self.written.values():
            answered = [prompt for prompt in prompts if written.to(prompt)]
            self._leave_out(written.name, len(prompts) - len(answered), prompts, "in the file")
            prompts = answered
        prompts = prompts[:most_prompts]
        fewest = min([count, *(written.fewest(prompts) for written in self.written.values())])
        if fewest < count:
            self.notes.append(
                f"the files have {fewest} answer{'s' * (fewest > 1)} to a prompt, so that many are compared."
            )
        given = {name: [written.to(prompt) for prompt in prompts] for name, written in self.written.items()}
        for name, server in self.servers.items():
            given[name] = server.ask(prompts, fewest, progress=f"{name} answers", **settings)
            failed = [answers for answers in given[name] if isinstance(answers, str)]
            self._leave_out(name, len(failed), prompts, f"({failed[0]})" if failed else "")
            if left_out := sorted({"temperature", "top_p", "seed"} & server.client.left_out):
                self.notes.append(f"the server of {name} takes no {' and no '.join(left_out)}, and samples by its own.")
            several = [row for row in given[name] if not isinstance(row, str) and len(row) > 1]
            if settings["temperature"] > 0 and several and all(len({a["text"] for a in row}) == 1 for row in several):
                self.notes.append(
                    f"{name} gave one answer each time to every prompt: its server seems to ignore temperature or seed, as "
                    "where a generation_config.json does not say do_sample."
                )
        sound = [n for n in range(len(prompts)) if not any(isinstance(rows[n], str) for rows in given.values())]
        if not sound:
            raise UserError(f"No prompt of {self.dataset} was answered by all of {', '.join(given)}.")
        answers = {
            name: [[_answer(one, tokenizer) for one in rows[n][:fewest]] for n in sound] for name, rows in given.items()
        }
        return [prompts[n] for n in sound], fewest, answers

    def _leave_out(self, name: str, missing: int, prompts: list, why: str) -> None:
        if missing and missing == len(prompts):
            raise UserError(
                f"{name} has no answer to any prompt of {self.dataset} {why}. The first is {as_text(prompts[0])!r:.100}; "
                "prompts are matched by their whole text."
            )
        if missing:
            self.notes.append(f"{name} has no answer to {missing} of {len(prompts)} prompts {why}; they are left out.")


def _answer(given: dict, tokenizer) -> Answer:
    return Answer.of(given["text"], given["finish_reason"], tokenizer, given.get("thought") or "")


def sources_from_flags(args, training_args, model_args) -> Sources:
    """As the flags name them, else as the first model's run has noted.

    Where nothing is named it is the newest run in runs/; where there is none, the basic script is run first. Raises
    UserError.
    """
    if args.dataset_streaming:
        raise UserError("--dataset_streaming: the held-out pairs are read more than once; leave it out.")
    check_whole("An evaluation")
    check_server_flags(args)
    files = read_written(args.answers_from, args.encoding)
    served = [args.answers_model] if args.answers_model else []
    names = args.models or ([model_args.model_name_or_path] if args.is_model_given else [])
    reference = args.reference
    if not args.models and not args.is_model_given and (files or served):
        names = [name for name in files if name != reference] + served
        if reference is None and len(files) > 1:
            reference = names.pop(0)
            say(f"The reference is {reference}, whose answers come first in {args.answers_from[0]}.")
    else:
        names = [*names, *(name for name in served if name not in names)]
    if files and set(files) <= {reference} and set(names) <= {reference}:
        raise UserError(f"--answers_from has answers of {reference} alone, and none to hold against it: add --models.")
    names = list(dict.fromkeys(names)) or [newest_trained(Path("runs")) or _train_basic()]
    facts = run_facts(names[0])
    reference = reference or facts.get("reference")
    dataset = args.source if args.is_data_given else facts.get("dataset")
    if dataset is None and files:
        dataset, args.data_kwargs["dataset_format"] = args.answers_from[0], "prompts"
    if reference is None or dataset is None:
        lacking = "reference" if reference is None else "dataset_name"
        more = " (a model, or one whose answers are in --answers_from)" if reference is None and files else ""
        raise UserError(f"{names[0]} has no metrics.json that names it: add --{lacking}{more}.")
    if len(names) > 1 and (args.judge == "human" or args.answers):
        raise UserError("A person judges one model at a time: name one by --model_name_or_path.")
    if served and reference not in files and not Path(reference).exists():
        say(f"The reference {reference} is no folder here, so it is asked at {args.answers_url}, too.")
        served = [*served, reference]
    servers = {name: server_from_flags(args, name) for name in served}
    sources = Sources(names, reference, dataset, _wanted(files, [reference, *names], args.answers_from), servers)
    if args.data_kwargs.get("held_out_share"):
        sources.notes += _held_out_otherwise(names, str(dataset), training_args.seed)
    local = {"the reference": reference, "what is evaluated": names[0]}
    training_args.reads |= {what: name for what, name in local.items() if sources.is_local(name)}
    training_args.reads |= {"its data": str(dataset)}
    for name in sources.local:
        base_of(name)  # refuses what cannot be loaded: better now than after the reference has written its answers
    return sources


def _held_out_otherwise(names: list[str], dataset: str, seed: int) -> list[str]:
    """What is to be said of models that were trained on this data with another seed, so on other prompts."""
    runs = {name: run_facts(name) for name in names}
    return [
        f"{name} was trained with --seed {run['seed']}: where the data has no test split, other prompts were held out from it "
        f"than --seed {seed} holds out, and it has seen most of these."
        for name, run in runs.items()
        if run.get("dataset") == dataset and run.get("seed", seed) != seed
    ]


def _wanted(files: dict[str, WrittenAnswers], wanted: list[str], named: list[str]) -> dict[str, WrittenAnswers]:
    """The answers of those models that are evaluated, wanted: the reference first.

    A file that names no model, and by its own name is none that is wanted, has the answers of the one that is evaluated.
    """
    found = {name: answers for name, answers in files.items() if name in wanted}
    nameless = [name for name in files if name in named and name not in wanted]
    if nameless and (len(nameless) > 1 or len(wanted) != 2 or wanted[1] in found):
        raise UserError(
            f"--answers_from {nameless[0]} does not say whose answers it has: name the file itself by --models or "
            "--reference, or put the name into a column model."
        )
    for name in nameless:
        files[name].name = wanted[1]
        found[wanted[1]] = files[name]
    if files and not found:
        raise UserError(f"--answers_from has answers of {', '.join(files)}, and not of {', '.join(wanted)}.")
    return found


def _train_basic() -> str:
    if PartialState().num_processes > 1:
        raise UserError("There is no run in runs/ yet: name a model by --model_name_or_path.")
    return train_basic()
