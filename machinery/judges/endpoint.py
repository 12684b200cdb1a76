"""A language model as the judge, behind an OpenAI-compatible endpoint.

    judge = EndpointJudge("http://localhost:8000", "my-model", key_from_environment("DPO_JUDGE_API_KEY"), Path("judged.jsonl"))
    verdicts = judge.judge(comparisons)

It is asked in both orders, because many models prefer the answer that stands first, whatever it says; which of the two
decided stands in the verdict. Its answers are kept in a file as they come, so a comparison is paid for once. In a
notebook, which has an event loop of its own: `await asyncio.to_thread(judge.judge, comparisons)`.
"""

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

from ..common.chat import as_text
from ..common.http_client import ChatClient, Failed, Patience
from ..common.kept_files import KeptLines
from ..common.safe_text import progress_bar
from .interface import BY_TEXT, FIRST, PARTLY, SECOND, Comparison, Judge, JudgeError, Verdict
from .question import Question, read_verdict, why_unclear

WINS = {"A": 0.0, "B": 1.0, "tie": 0.5}  # of the second answer, by the verdict on the two
AT_A_TIME = 8
# Reason and verdict take about a hundred tokens. The bound is for a judge that cannot stop: 1,024 leave it room to ramble.
# One that thinks before it answers needs several thousand.
MOST_TOKENS = 1024


class _BudgetUsed(Exception):
    pass


class EndpointJudge(Judge):
    """Asks a chat model behind an OpenAI-compatible endpoint, in both orders; where they disagree it is a tie."""

    is_language_model = True

    def __init__(
        self,
        url: str,
        model: str,
        key: str | None,
        cache: Path,
        budget: int | None = None,
        *,
        question: Question | None = None,
        most_tokens: int = MOST_TOKENS,
        most_answers: int = 1,
        attempts: int = 6,
        timeout: float | None = None,
        concurrency: int = AT_A_TIME,
        wait: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ):
        """url: with or without /v1/chat/completions. key: sent to that address and shown nowhere; None for none.

        cache: a file of JSON lines for the answers. budget: the most requests in this judge's life, repeated ones
        included, answers from the cache not. question: what it is asked. most_tokens: of its answer, thought included.
        most_answers: to a prompt, see `Judge`. attempts: for each order of a comparison. timeout: seconds for a whole
        answer; None: a minute, and one second for every ten tokens. concurrency: requests at a time. wait: how to wait
        for some seconds. Raises JudgeError for an address that cannot be used.
        """
        timeout = 60.0 + most_tokens / 10 if timeout is None else timeout
        self.client = ChatClient(url, model, key, error=JudgeError, attempts=attempts, timeout=timeout, wait=wait)
        self.name = f"{model} at {self.client.url.host}"
        self.cache, self.budget, self.concurrency = KeptLines(cache, "The judge's answers"), budget, concurrency
        self.question, self.most_tokens, self.most_answers = question or Question(), most_tokens, most_answers
        self.requests = 0  # made so far

    def judge(self, comparisons: list[Comparison], progress: str | None = None) -> list[Verdict]:
        """One verdict a comparison; None, with the reason, where there was no answer or the budget was used up.

        Raises JudgeError where the endpoint refuses, or where it answered nothing at all.
        """
        return asyncio.run(self._judge(comparisons, progress))

    async def _judge(self, comparisons: list[Comparison], progress: str | None) -> list[Verdict]:
        differing = [both for both in comparisons if both.first != both.second]
        orders = {self._digest(order): order for both in differing for order in (both, _swapped(both))}
        answers, failed = self._read_cache(), {}
        waiting = iter([(digest, order) for digest, order in orders.items() if digest not in answers])
        self.gave_up = None
        patience, last_failure = Patience(has_answered=any(digest in answers for digest in orders)), ""

        async def work() -> None:
            nonlocal last_failure
            for digest, order in waiting:  # shared by all workers: each takes the next
                partner = self._digest(_swapped(order))
                if patience.is_spent:
                    self.gave_up = f"gave up after {patience.in_a_row} failures in a row, the last: {last_failure}"
                    failed[digest] = f"not judged: {self.gave_up}"
                elif partner not in failed:  # one order alone makes no verdict
                    try:
                        answers[digest] = await self._ask(http, digest, order)
                        patience.answered()
                    except _BudgetUsed:
                        failed[digest] = f"not judged: the budget of {self.budget} requests was used up"
                    except Failed as failure:
                        if partner not in failed:
                            patience.failed(failure)
                        last_failure = str(failure)
                        failed[digest] = f"not judged: {last_failure}"
                bar.update()

        cached = sum(digest in answers for digest in orders)
        with progress_bar(total=len(orders), initial=cached, desc=progress, disable=progress is None) as bar:
            try:
                async with self.client.connected() as http, asyncio.TaskGroup() as group:
                    for _ in range(self.concurrency):
                        group.create_task(work())
            except ExceptionGroup as group:  # the first worker's error has stopped the others
                raise group.exceptions[0] from None
        if last_failure and all(self._verdict(both, answers, failed).win is None for both in differing):
            raise JudgeError(f"{self.name} never gave a verdict: {last_failure}")
        return [self._verdict(both, answers, failed) for both in comparisons]

    async def _ask(self, http, digest: str, order: Comparison) -> str:
        """An answer with a verdict on one order. Raises Failed, _BudgetUsed, JudgeError."""
        failure, temperature, pause = None, 0.0, 0.0
        question = [{"role": "user", "content": self.question.about(order, digest[:16])}]
        for attempt in range(self.client.attempts):
            if pause:
                await self.client.wait(pause)
            if self.budget is not None and self.requests >= self.budget:
                raise _BudgetUsed
            self.requests += 1
            try:
                reply = await self.client.request(http, question, temperature=temperature, max_tokens=self.most_tokens)
            except Failed as error:
                if not error.again:
                    raise
                failure, pause = error, self.client.pause(attempt, error)
                continue
            is_cut = reply.finish_reason == "length"
            self.cache.put(digest, answer=reply.text, is_cut=is_cut)
            if not is_cut and read_verdict(reply.text):
                return reply.text
            unclear = why_unclear(reply.text, is_cut, self.most_tokens)
            failure = Failed(f"no clear verdict in its answer: {unclear}", of_this=True)
            if is_cut:  # what it writes another time is hardly shorter
                raise failure
            # The same question at temperature 0 would bring the same answer.
            temperature, pause = 0.7, 0.0
        raise failure

    def _digest(self, order: Comparison) -> str:
        """The name of one question in the cache. Its start is the number at the marks: no answer can hold it."""
        texts = as_text(order.prompt), order.first, order.second
        return hashlib.sha256(
            json.dumps([str(self.client.url), self.client.model, self.question.text, *texts]).encode()
        ).hexdigest()

    def _read_cache(self) -> dict[str, str]:
        """Answers with a verdict by digest."""
        kept = {digest: entry.get("answer") for digest, entry in self.cache.read().items() if not entry.get("is_cut")}
        return {digest: answer for digest, answer in kept.items() if isinstance(answer, str) and read_verdict(answer)}

    def _verdict(self, comparison: Comparison, answers: dict[str, str], failed: dict[str, str]) -> Verdict:
        if comparison.first == comparison.second:
            return Verdict(0.5, "the answers are the same", None)
        digests = [self._digest(comparison), self._digest(_swapped(comparison))]
        reasons = [failed[digest] for digest in digests if digest in failed]
        if reasons:
            return Verdict(None, reasons[0], None)
        (there, reason), (back, _) = (read_verdict(answers[digest]) for digest in digests)
        if WINS[there] == 1 - WINS[back]:
            return Verdict(WINS[there], reason, None, BY_TEXT)
        decided = {"AA": FIRST, "BB": SECOND}.get(there + back, PARTLY)
        return Verdict(0.5, f"the order decided: {there} as given, {back} with the answers swapped", None, decided)


def _swapped(comparison: Comparison) -> Comparison:
    return Comparison(comparison.prompt, comparison.second, comparison.first)
