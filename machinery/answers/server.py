"""Answers of a model behind an OpenAI-compatible server, such as vLLM, SGLang or `transformers serve`.

    server = AnswerServer("http://localhost:8000/v1", "my-model", key_from_environment(KEY_NAME))
    answers = server.ask(prompts, 4, temperature=1.0, max_tokens=256, seed=42)       # by prompt; a str: why there is none

Several requests at a time; one that fails for a reason of its own costs its prompt, and a server that is gone ends the
evaluation with a sentence. What has come is kept, so the same command asks for the rest alone.
"""

import asyncio
import json
from dataclasses import dataclass

from transformers.hf_argparser import HfArg

from ..common.errors import UserError
from ..common.http_client import ChatClient, Failed, Patience, key_from_environment
from ..common.safe_text import progress_bar
from ..readings.texts import as_turns
from .kept import FOLDER, KeptAnswers, digest_of, from_all, share_of

KEY_NAME = "DPO_ANSWERS_API_KEY"
AT_A_TIME = 8


@dataclass
class ServerArguments:
    """Who answers, where it is no model that is loaded here."""

    answers_url: str | None = HfArg(
        default=None, help="an OpenAI-compatible server that answers; its key is read from DPO_ANSWERS_API_KEY"
    )
    answers_model: str | None = HfArg(default=None, help="the name of the model there")


def check_server_flags(args) -> None:
    """Raises UserError where one of the two is missing."""
    if (args.answers_url is None) != (args.answers_model is None):
        raise UserError("--answers_url and --answers_model go together: a server, and the name of a model there.")


def server_from_flags(args, name: str | None = None) -> "AnswerServer":
    """The model of --answers_model, or another one there. Raises UserError."""
    return AnswerServer(args.answers_url, name or args.answers_model, key_from_environment(KEY_NAME))


class AnswerServer:
    """A model at an address, and what it has answered before."""

    def __init__(self, url: str, model: str, key: str | None, folder=FOLDER, timeout: float = 600.0, **how):
        """timeout: seconds for a whole answer. how: for `ChatClient`. Raises UserError for an address of no use."""
        self.client = ChatClient(url, model, key, whose="the server's", key_name=KEY_NAME, timeout=timeout, **how)
        self.name = model
        self.kept = KeptAnswers(f"{self.client.url} {model}", folder)

    def ask(self, prompts: list, count: int, *, progress: str | None = None, **settings) -> list[list[dict] | str]:
        """`count` answers to each prompt, {"text", "thought", "finish_reason"}; or why there is one missing.

        settings: temperature, max_tokens, seed. Several processes ask for a share each. Raises UserError where the
        server refuses, or answers nothing any more.
        """
        mine = share_of(len(prompts))
        done = asyncio.run(self._ask([prompts[number] for number in mine], count, progress, settings))
        done = from_all(dict(zip(mine, done, strict=True)))
        return [done[number] for number in range(len(prompts))]

    async def _ask(self, prompts: list, count: int, progress: str | None, settings: dict) -> list:
        # The shortest first: a server that refuses long ones has answered by then.
        places = sorted(range(len(prompts)), key=lambda place: len(str(prompts[place])))
        wanted = [(place, sample) for place in places for sample in range(count)]
        found: dict[tuple[int, int], dict] = {}
        failed: dict[int, str] = {}
        waiting, patience = iter(wanted), Patience()

        async def work() -> None:
            for place, sample in waiting:  # shared by all workers: each takes the next
                body = _body(prompts[place], settings, sample)
                key = digest_of(body)
                answer = self.kept.get(key)
                if answer is None and place not in failed:
                    try:
                        answer = (await self.client.ask(http, **body))._asdict()
                        self.kept.put(key, answer)
                    except Failed as failure:
                        failed[place] = str(failure)
                        patience.failed(failure)
                        if patience.is_spent:
                            raise UserError(self._gave_up(patience.in_a_row, failure)) from None
                if answer is not None:
                    found[place, sample] = answer
                    patience.answered()
                bar.update()

        with progress_bar(total=len(wanted), desc=progress, disable=progress is None) as bar:
            try:
                async with self.client.connected() as http, asyncio.TaskGroup() as group:
                    for _ in range(AT_A_TIME):
                        group.create_task(work())
            except ExceptionGroup as group:  # the first worker's error has stopped the others
                raise group.exceptions[0] from None
        return [
            failed[place] if place in failed else [found[place, sample] for sample in range(count)]
            for place in range(len(prompts))
        ]

    def _gave_up(self, in_a_row: int, failure: Failed) -> str:
        return (
            f"{self.client.url}, model {self.client.model}: gave up after {in_a_row} failures in a row, the last: {failure}. "
            "The answers that came are kept: the same command asks for the others"
        )


def _body(prompt, settings: dict, sample: int) -> dict:
    """A request for one of several answers; a seed of its own makes it another one."""
    body = {"messages": as_turns(prompt, "user")} | settings | {"seed": settings["seed"] + sample, "top_p": 1.0}
    if tools := getattr(prompt, "tools", None):
        body["tools"] = json.loads(tools)
    if kwargs := getattr(prompt, "template_kwargs", None):
        body["chat_template_kwargs"] = kwargs
    return body
