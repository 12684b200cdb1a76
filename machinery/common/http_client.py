"""A chat model behind an OpenAI-compatible endpoint: asked with patience, refused by name, the key shown nowhere.

    client = ChatClient("http://localhost:8000", "my-model", key_from_environment("DPO_JUDGE_API_KEY"))
    async with client.connected() as http:
        reply = await client.request(http, messages, temperature=0.0)        # once; raises Failed
        reply = await client.ask(http, messages, temperature=0.0)            # again and again, while that may help
    reply.text, reply.finish_reason

What is known of servers: some take no temperature, some ask to wait, some send back what they were sent.
"""

import asyncio
import ipaddress
import json
import logging
import os
import random
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import NamedTuple

from huggingface_hub.utils import httpx  # the package is called httpx or httpx2, and comes with the hub's client

from .chat import THOUGHTS
from .errors import UserError

logger = logging.getLogger("dpo")

OPTIONAL = ("temperature", "top_p", "seed", "max_tokens")  # settings that a server may not know
NEWER = {"max_tokens": "max_completion_tokens"}  # by the name that it may know instead
JSON = {"Content-Type": "application/json"}
GIVE_UP_AFTER = 5  # questions in a row that a server leaves unanswered
LONGEST_WAIT = 300.0  # seconds a server may ask to wait before that counts as a refusal


class Failed(Exception):
    """A request without an answer. wait: seconds the server asks for. again: whether another attempt may help.

    of_this: it is this question that was not answered, as one that is too long; others may well be.
    """

    def __init__(self, reason: str, wait: float = 0.0, again: bool = True, of_this: bool = False):
        super().__init__(reason if wait <= LONGEST_WAIT else f"{reason}; it asks to wait {wait:.0f} s")
        self.wait, self.again, self.of_this = wait, again and wait <= LONGEST_WAIT, of_this


class Patience:
    """When to stop asking: a server that is gone is not asked thousands of times, one that refuses some questions is.

    Until it has answered anything, those that it refuses count too: it may refuse them all.
    """

    def __init__(self, has_answered: bool = False):
        """has_answered: it has at another time, and the answers were kept."""
        self.in_a_row, self._has_answered = 0, has_answered

    @property
    def is_spent(self) -> bool:
        return self.in_a_row >= GIVE_UP_AFTER

    def answered(self) -> None:
        self.in_a_row, self._has_answered = 0, True

    def failed(self, failure: Failed) -> None:
        self.in_a_row += not (failure.of_this and self._has_answered)


class Reply(NamedTuple):
    """What a chat model answered."""

    text: str
    finish_reason: str | None  # "stop", "length", ...
    thought: str  # where the server keeps it apart from the text


def key_from_environment(name: str) -> str | None:
    """An endpoint's key from the variable of this name, else from OPENAI_API_KEY; None where neither is set."""
    return os.environ.get(name) or os.environ.get("OPENAI_API_KEY") or None


class ChatClient:
    """Sends conversations to one model at one address."""

    def __init__(
        self,
        url: str,
        model: str,
        key: str | None,
        *,
        whose: str = "the judge's",
        key_name: str = "DPO_JUDGE_API_KEY",
        error: type[UserError] = UserError,
        attempts: int = 6,
        timeout: float = 60.0,
        wait: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ):
        """url: with or without /v1/chat/completions. key: sent to that address and shown nowhere; None for none.

        whose, key_name: the address and its key in sentences. error: what is raised where every request will be refused.
        attempts: for each question. timeout: seconds for a whole answer. wait: how to wait for some seconds.
        Raises `error` for an address that cannot be used.
        """
        self._error, self._whose, self._key_name = error, whose, key_name
        self.url, self.model = self._endpoint(url, key), model
        self.attempts, self.timeout, self.wait = attempts, timeout, wait
        self._key = (key or "").strip()
        self.left_out: set[str] = set()  # settings that the server does not take
        self._jitter = random.Random()  # leaves the generator of the caller's seed alone

    def connected(self) -> httpx.AsyncClient:
        """A connection for any number of requests at a time, to be closed by `async with`."""
        # A proxy would see the key on its way to a server on this machine, so there the environment's is not used.
        http = httpx.AsyncClient(timeout=None, trust_env=not _is_loopback(self.url.host))
        if self._key:
            http.headers["Authorization"] = f"Bearer {self._key}"  # no local variable: tracebacks can show those
        return http

    async def ask(self, http: httpx.AsyncClient, messages: list[dict], **settings) -> Reply:
        """`request`, repeated where another attempt may help, with longer and longer pauses."""
        for attempt in range(self.attempts):
            try:
                return await self.request(http, messages, **settings)
            except Failed as failure:
                if not failure.again or attempt + 1 == self.attempts:
                    raise
                await self.wait(self.pause(attempt, failure))

    def pause(self, attempt: int, failure: Failed) -> float:
        """Seconds to wait after an attempt, counted from 0, has failed."""
        return max(failure.wait, 2**attempt * self._jitter.uniform(0.5, 1.0))

    async def request(self, http: httpx.AsyncClient, messages: list[dict], **settings) -> Reply:
        """One answer. settings: temperature, max_tokens, seed, ... Raises Failed, or where all would fail `error`."""
        settings = {NEWER.get(name, name) if name in self.left_out else name: v for name, v in settings.items()}
        settings = {name: value for name, value in settings.items() if name not in self.left_out}
        body = {"model": self.model, "messages": messages} | settings
        try:
            async with asyncio.timeout(self.timeout):
                response = await http.post(self.url, content=json.dumps(body), headers=JSON)
        except TimeoutError:
            raise Failed(f"no answer within {self.timeout:g} s") from None
        except httpx.RequestError as error:  # `from None`: the request hangs on it, and the key on the request
            raise Failed(self._quote(f"no connection, or it was dropped ({type(error).__name__}: {error})")) from None

        status = response.status_code
        if refusal := self._refusals().get(status):
            raise self._error(f"{self.url}, model {self.model}: {refusal}")
        if 300 <= status < 400:  # not followed: it would carry the key along
            place = self._quote(response.headers.get("Location", "nowhere"))
            raise self._error(f"{self.url} redirects to {place}: give the final address")
        if not response.is_success:
            again = status in (408, 409, 425, 429) or status >= 500
            if status in (400, 422) and (refused := _refused_setting(response, body)):
                again = True
                if refused not in self.left_out:
                    self.left_out.add(refused)
                    instead = f"with {NEWER[refused]}" if refused in NEWER else "without"
                    logger.warning(
                        f"{self.url} does not take {refused}; it is asked {instead}: {self._quote(response.text)}"
                    )
            told, of_this = self._quote(response.text), status in (400, 413, 422)
            raise Failed(f"HTTP {status}: {told}", _retry_after(response), again, of_this)
        try:
            choice = response.json()["choices"][0]
            (text, thought), reason = _read_message(choice["message"]), choice.get("finish_reason")
        except (ValueError, LookupError, TypeError, AttributeError):
            raise Failed("its answer is no JSON with choices[0].message.content") from None
        reason = reason if isinstance(reason, str) else None
        if text is None and reason == "length":  # cut off within a thought that the server keeps apart
            text = ""
        if not isinstance(text, str):
            because = f" (finish_reason {self._quote(reason)})" if reason else ""
            raise Failed(f"its answer has no text{because}", again=reason is None, of_this=True)
        return Reply(self._without_key(text), reason, self._without_key(thought))

    def _refusals(self) -> dict[int, str]:
        """What HTTP says to every request alike."""
        return {
            401: f"the key was refused, or one is needed (HTTP 401); check {self._key_name}, or OPENAI_API_KEY without it",
            403: "access was denied (HTTP 403); check what the key may do, and with which models",
            404: "not found (HTTP 404); check the address and the model's name",
        }

    def _without_key(self, text: str) -> str:
        """A server may send back what it was sent. A short key is a placeholder, and could be any word."""
        return text.replace(self._key, "[key]") if len(self._key) >= 8 else text

    def _quote(self, text: str) -> str:
        """The beginning of what somebody else wrote, on one line."""
        return " ".join("".join(c if c.isprintable() else " " for c in self._without_key(text)).split())[:200]

    def _endpoint(self, url: str, key: str | None) -> httpx.URL:
        """The address of /chat/completions."""
        whose = self._whose
        try:
            parsed = httpx.URL(url.strip())
        except httpx.InvalidURL:
            raise self._error(f"{whose} address is no address: give it as in https://host/v1") from None
        is_plain = not (parsed.userinfo or parsed.query or parsed.fragment)
        if parsed.scheme not in ("http", "https") or not parsed.host or not is_plain:
            raise self._error(f"{whose} address must be like https://host/v1, without user name, password, ? and #")
        if key is not None and not re.fullmatch(r"[!-~]+", key.strip()):
            raise self._error(f"{whose} key is empty or holds characters that no key has: copy it again")
        if key is not None and parsed.scheme == "http" and not _is_loopback(parsed.host):
            raise self._error(
                f"a key is not sent over plain http to {parsed.host}: give an https:// address, or no key (in {self._key_name} "
                "or OPENAI_API_KEY)"
            )
        path = parsed.path.rstrip("/")
        if not path.endswith("/chat/completions"):
            path += "/chat/completions" if re.search(r"/v\d", path) else "/v1/chat/completions"
        return parsed.copy_with(path=path)


def _read_message(message: dict) -> tuple[str | None, str]:
    """The text of an answer, its calls of tools written out behind it, and its thought where the server keeps that apart.

    Some servers send typed parts instead of a text, Mistral's among them.
    """
    text = message.get("content")
    thought = next((found for name in THOUGHTS if isinstance(found := message.get(name), str)), "")
    if isinstance(text, list):
        thought = thought or "".join(_text_of(part["thinking"]) for part in text if part.get("type") == "thinking")
        text = _text_of(text)
    called = [call["function"] for call in message.get("tool_calls") or []]
    if called and isinstance(text, str | None):
        text = "\n".join([text] * bool(text) + [f"<tool_call>\n{_as_json(call)}\n</tool_call>" for call in called])
    return text, thought


def _text_of(parts: str | list[dict]) -> str:
    """What the parts of type text say."""
    if isinstance(parts, str):
        return parts
    return "".join(part["text"] for part in parts if part.get("type") == "text")


def _as_json(call: dict) -> str:
    """A call as Qwen's and Hermes' models write it. Its arguments come as a text, which should be JSON."""
    arguments = call.get("arguments") or {}
    with suppress(ValueError):
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
    return json.dumps({"name": call["name"], "arguments": arguments}, ensure_ascii=False)


def _refused_setting(response: httpx.Response, body: dict) -> str | None:
    """The setting that a server does not take, by what it says is wrong: some models take no temperature but their own.

    A server may repeat what it was sent, so a word that stands in the conversation tells nothing. Nor does one that is
    taken, with a smaller value: a conversation that fills the model's context.
    """
    if re.search(r"too large|too long|at most|maximum", response.text):
        return None
    sent = json.dumps(body["messages"])
    with suppress(ValueError, LookupError, TypeError, AttributeError):
        named = response.json()["error"]["param"]  # as OpenAI has it
        if isinstance(named, str):
            return named if named in OPTIONAL and named in body else None
    for name in OPTIONAL:
        pattern = rf"\b{name}\b"
        if name in body and re.search(pattern, response.text) and not re.search(pattern, sent):
            return name
    return None


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _retry_after(response: httpx.Response) -> float:
    """Seconds that the header Retry-After asks to wait, given as a number or a date; 0 without one."""
    value = response.headers.get("Retry-After", "")
    with suppress(ValueError):
        return max(0.0, float(value))
    with suppress(ValueError, TypeError):
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    return 0.0
