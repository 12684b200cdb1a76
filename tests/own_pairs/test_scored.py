"""Answers to each prompt, their scores, and the file of both: what any judge makes of them, and what is read back."""

import json
import re
import socket
from statistics import pstdev
from types import SimpleNamespace

import pytest
import torch
from conftest import PROJECT, SHORT, fork_server
from fake_server import FakeServer
from transformers import LlamaConfig, LlamaForSequenceClassification

import dpo_utils
from demo.world import known_truth
from dpo_utils import load_preferences
from machinery.answers import kept as kept_module
from machinery.answers.written import read_written
from machinery.common.errors import UserError
from machinery.judges.interface import TRUTH, Judge, Verdict
from machinery.judges.reward_model import load_reward_model
from machinery.judges.scores import ScoreJudge, function_judge
from machinery.own_pairs.answering import Sampled, prompts_by_split, several_answers
from machinery.own_pairs.flags import SamplingArguments
from machinery.own_pairs.scored import Delta, asked_again, score_answers, scoring_judge, write_scored

PROMPTS = [[{"role": "user", "content": "Why?"}], [{"role": "user", "content": "Who?"}]]
ANSWERS = [
    [Sampled("So.", "m", True), Sampled("Because.", "m", True), Sampled("It is so since it", "m", False)],
    [Sampled("You.", "m", True), Sampled("Me.", "m", True), Sampled("You.", "m", True)],
]


@pytest.fixture(autouse=True)
def kept_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(kept_module.KeptAnswers.__init__, "__defaults__", (tmp_path / "kept",))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def arguments(**values):
    made = {"sample_answers": 2, "max_new_tokens": 4, "model_kwargs": {}, "data_kwargs": {}, "save_cleaned": None}
    return SimpleNamespace(**vars(SamplingArguments()) | made | values)


def test_a_judge_that_scores_is_asked_about_every_answer_and_nothing_twice(tmp_path):
    asked = []

    def length(prompts, answers):
        asked.extend(answers)
        return [len(answer) for answer in answers]

    rules = tmp_path / "rules.py"
    rules.write_text("def score(prompt, answer): return 0")
    args = arguments(judge=f"{rules}:score")
    for _ in range(2):
        assert score_answers(ScoreJudge("length", length), PROMPTS, ANSWERS, args) == [[3, 8, 17], [4, 3, 4]]
    assert len(asked) == 6
    rules.write_text("def score(prompt, answer): return 1 + 1")  # another judge
    score_answers(ScoreJudge("length", length), PROMPTS, ANSWERS, args)
    assert len(asked) == 12


class Compares(Judge):
    """Prefers the longer answer, and says nothing of one that has "since"."""

    name = "the longer one"

    def judge(self, comparisons, progress=None):
        self.asked = comparisons
        return [
            Verdict(None, "refused", None) if "since" in c.second else Verdict(
                0.5 if len(c.first) == len(c.second) else float(len(c.second) > len(c.first)), None, None
            )
            for c in comparisons
        ]  # fmt: skip


def test_a_judge_that_compares_scores_an_answer_by_the_others_it_beats(capsys):
    judge = Compares()
    scores = score_answers(judge, PROMPTS, ANSWERS, arguments())
    assert scores == [[0.0, 1.0, None], [0.75, 0.0, 0.75]]  # of one that has no verdict the others still have theirs
    assert len(judge.asked) == 6
    said = capsys.readouterr().out
    assert "compares 6 pairs of answers" in said and "2 of them have no verdict (refused)" in said


def test_delta_knows_only_who_wrote_an_answer():
    row = [Sampled("Good.", "small", True), Sampled("Bad.", "large", True)]
    assert score_answers(Delta(), PROMPTS[:1], [row], arguments()) == [[0.0, -1.0]]


def test_what_is_written_is_read_as_pairs_and_an_answer_that_was_cut_off_is_never_chosen(tmp_path, capsys):
    write_scored(tmp_path / "answers", "train", PROMPTS, ANSWERS, [[1.0, 2.0, 9.0], [0.0, 1.0, 0.0]])
    assert "6 to 2 prompts" in capsys.readouterr().out
    pairs, *_ = load_preferences(str(tmp_path / "answers"), None)
    found = [json.loads(row["pair"]) for row in pairs]
    assert [(p["chosen"][0]["content"], p["rejected"][0]["content"]) for p in found] == [
        ("Because.", "It is so since it"),
        ("Me.", "You."),
    ]
    one_step = pstdev([1.0, 2.0, 0.0, 1.0, 0.0])  # of this judge's scores
    assert (found[0]["score_chosen"], found[0]["score_rejected"]) == (2.0, 1.0 - one_step)
    written = read_written([str(tmp_path / "answers" / "train.jsonl")])
    assert [answer["finish_reason"] for answer in written["m"].to(PROMPTS[0])] == ["stop", "stop", "length"]


def test_where_no_answer_was_finished_there_is_no_pair(tmp_path):
    cut = [[Sampled("It is", "m", False), Sampled("So it", "m", False)]]
    with pytest.raises(UserError, match=r"train.jsonl: no prompt has two scored answers.* raise --max_new_tokens"):
        write_scored(tmp_path, "train", PROMPTS[:1], cut, [[1.0, 2.0]])
    assert json.loads((tmp_path / "train.jsonl").read_text())["answers"] == []


def test_how_many_prompts_make_no_pair_is_said_and_why_at_their_rows(tmp_path, capsys):
    cut = [Sampled("It is", "m", False), Sampled("So it", "m", False)]
    write_scored(tmp_path, "train", PROMPTS, [cut, ANSWERS[1]], [[1.0, 2.0], [0.0, 1.0, 0.0]])
    assert "1 of the prompts have no two scored answers" in capsys.readouterr().out
    pairs, _, reports = load_preferences(str(tmp_path), None)
    assert len(pairs) == 1
    assert "'answers[].text' holds no answer" in str(reports["train"])


def test_prompts_are_drawn_by_the_seed_and_later_rounds_get_others(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"What is {n % 50}?"}) + "\n" for n in range(60)))
    parts = []
    for skip in (0, 20, 40):
        args = arguments(source=str(path), dataset_name=str(path), num_prompts=20, skip_prompts=skip)
        parts.append(prompts_by_split(args, 7, None, dpo_utils)[0]["train"])
    assert [len({str(prompt) for prompt in part}) for part in parts] == [20, 20, 20]
    assert len({str(prompt) for part in parts for prompt in part}) == 50  # and then those of the beginning again
    args = arguments(source=str(path), dataset_name=str(path), num_prompts=None, skip_prompts=50)
    with pytest.raises(UserError, match="leaves none of 50 prompts"):
        prompts_by_split(args, 7, None, dpo_utils)


def test_the_same_prompts_are_held_out_in_every_round(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"What is {n}?"}) + "\n" for n in range(50)))
    trained, held = set(), set()
    for skip in (0, 20, 40):
        how = {"held_out_share": 0.1, "seed": 3}
        args = arguments(source=str(path), dataset_name=str(path), num_prompts=20, skip_prompts=skip, data_kwargs=how)
        splits, _ = prompts_by_split(args, 7, None, dpo_utils)
        trained |= set(map(str, splits["train"]))
        held.add(tuple(map(str, splits["test"])))
    [held] = held
    assert len(held) == 5 and len(trained) == 45 and not trained & set(held)


def test_pairs_count_for_their_prompts_and_splits_stay_apart(base_tokenizer):
    args = arguments(source="demo", dataset_name="demo", num_prompts=5)
    base_tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}"
    splits, are_texts = prompts_by_split(args, 0, base_tokenizer, dpo_utils)
    assert not are_texts
    assert {split: len(prompts) for split, prompts in splits.items()} == {"train": 5, "test": 256}


def test_several_models_answer_the_same_prompts(base_model_folder, base_tokenizer, tmp_path):
    base_tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}"
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty holds no model"):  # before anybody has answered
        several_answers({}, "", None, None, arguments(sample_from=["x", str(tmp_path / "empty")]), None, None)
    args = arguments(sample_from=[str(base_model_folder), "a/policy"], sample_answers=2)
    model, _ = dpo_utils.load_model(str(base_model_folder))
    training_args = SimpleNamespace(seed=3, device="cpu", per_device_eval_batch_size=3)
    splits = {"train": PROMPTS, "test": PROMPTS[:1]}
    found = several_answers(splits, "a/policy", model, base_tokenizer, args, training_args, dpo_utils)
    assert [len(row) for row in found["test"]] == [4]
    answers = found["train"]
    assert [[answer.model for answer in row] for row in answers] == [
        [str(base_model_folder)] * 2 + ["a/policy"] * 2
    ] * 2
    assert len({answer.text for row in answers for answer in row}) == 4  # one model under two names draws the same
    assert several_answers(splits, "a/policy", model, base_tokenizer, args, training_args, dpo_utils) == found


def test_the_judge_is_tried_before_any_answer_is_sampled(tmp_path):
    rules = tmp_path / "rules.py"
    rules.write_text("def score(prompt, answer): return float('nan')")
    args = arguments(judge=f"{rules}:score")
    with pytest.raises(UserError, match="a finite number is wanted"):
        scoring_judge(args, SimpleNamespace(), PROMPTS, True, known_truth)
    with pytest.raises(UserError, match="--sample_answers needs a judge"):
        scoring_judge(arguments(), SimpleNamespace(), PROMPTS, True, known_truth)
    demo = [[{"role": "user", "content": "My radio arrived with a scratch. Please help."}]]
    judge = scoring_judge(arguments(), SimpleNamespace(), demo, False, known_truth)
    assert judge.name == "the true reward"
    assert isinstance(function_judge(f"{rules}:score"), ScoreJudge)


def test_who_scores_at_no_cost_is_asked_about_the_held_out_replies_too():
    rewards = ScoreJudge("the reward model rewards", lambda prompts, answers: [0.0] * len(answers))
    assert asked_again(rewards) is rewards
    assert asked_again(ScoreJudge("rules.py:score", lambda prompts, answers: [], is_language_model=True)) is None
    assert asked_again(ScoreJudge(TRUTH, lambda prompts, answers: [])) is None  # it is measured anyway
    assert asked_again(Delta()) is None


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"rounds": -1, "sample_answers": 2}, "--rounds must be 1 or more"),
        ({"rounds": 2, "sample_answers": 2, "check_only": True}, "leave out --check_only and --save_cleaned"),
        ({"rounds": 2, "sample_answers": 2, "save_cleaned": "kept.jsonl"}, "leave out --check_only and --save_cleaned"),
        ({"rounds": 2, "sample_answers": 2, "resume_from_checkpoint": True}, "leave out --resume_from_checkpoint"),
        ({"rounds": 2}, "a second round on the same pairs is a second epoch"),
        ({"first_reference": True, "sample_answers": 2}, "--first_reference counts with --rounds"),
        (
            {"judge_model": "rewards", "temperature": 0.7},
            "--judge_model and --temperature counts with --sample_answers",
        ),
        ({"judge": "truth", "num_prompts": 3}, "--num_prompts and --judge counts with --sample_answers only"),
        ({"sample_answers": 1}, "a pair takes two answers"),
        ({"sample_answers": -2}, "a pair takes two answers"),
        ({"sample_answers": 2, "answers_url": "http://localhost:1"}, "go together"),
        ({"sample_answers": 2, "temperature": 0.0}, "--temperature must be a number above 0"),
        ({"sample_answers": 2, "judge": "delta"}, "needs two that answer"),
        ({"sample_answers": 2, "judge": "human"}, "--judge human compares"),
        ({"sample_answers": 2, "num_prompts": 0}, "--num_prompts must be at least 1"),
        ({"sample_answers": 2, "skip_prompts": -1}, "--skip_prompts must be at least 0"),
    ],
)
def test_flags_that_cannot_work_are_refused_at_once(flags, words, call):
    told = [word for name, value in flags.items() for word in (f"--{name}", *([] if value is True else [value]))]
    code, output, error = call("custom_dataset_dpo", *told)
    assert code == 2 and words in error
    assert "Data:" not in output


def test_from_prompts_to_a_trained_model_by_one_command_and_again_in_its_place(tmp_path, call, monkeypatch):
    monkeypatch.setattr(kept_module, "FOLDER", tmp_path / "kept")
    texts = [f"My radio arrived with a scratch. I wrote {n} times. Please help." for n in range(24)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    (tmp_path / "rules.py").write_text("def score(prompt, answer):\n    return len(answer) + ('times' in prompt)\n")
    words = [
        "--dataset_name",
        tmp_path / "prompts.jsonl",
        "--sample_answers",
        2,
        "--judge",
        f"{tmp_path}/rules.py:score",
    ]
    words += ["--output_dir", tmp_path / "out", *SHORT, "--max_new_tokens", 64]
    for more in ((), ("--overwrite_output_dir",)):
        code, output, error = call("custom_dataset_dpo", *words, *more)
        assert code == 0, error
        rows = [json.loads(line) for line in (tmp_path / "out" / "answers" / "train.jsonl").read_text().splitlines()]
        held = [json.loads(line) for line in (tmp_path / "out" / "answers" / "test.jsonl").read_text().splitlines()]
        assert (len(rows), len(held)) == (22, 2) and {len(row["answers"]) for row in rows} <= {0, 2}
        made = json.loads((tmp_path / "out" / "metrics.json").read_text())
        assert made["score_before"] > 0 and made["score_win_rate_ci_low"] <= made["score_win_rate"]
    assert "Score of" in output and "read as prompt, answers = answers[].text" in output


def test_a_converter_reads_what_is_to_be_answered(tmp_path, call):
    rows = [{"ticket": {"title": f"Radio {n}", "body": "It is silent."}, "answers": ["a", "b"]} for n in range(4)]
    (tmp_path / "tickets.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [
        "--dataset_name",
        tmp_path / "tickets.jsonl",
        "--dataset_format",
        "mine",
        "--held_out_share",
        0,
        "--check_only",
    ]
    words += ["--model_name_or_path", "demo/model", "--sample_answers", 2, "--max_new_tokens", 16]
    (tmp_path / "rules.py").write_text("def score(prompt, answer): return len(answer)")
    words += ["--judge", f"{tmp_path}/rules.py:score", "--output_dir", tmp_path / "out"]
    _, _, error = call("custom_dataset_dpo", *words)  # without pairs, where both answers are equal
    asked = [
        json.loads(line)["prompt"] for line in (tmp_path / "out" / "answers" / "train.jsonl").read_text().splitlines()
    ]
    assert asked == [[{"role": "user", "content": f"Radio {n}\n\nIt is silent."}] for n in range(4)]
    assert "--dataset_format" not in error


def test_check_only_samples_scores_saves_and_trains_nothing(tmp_path, call):
    words = [
        "--dataset_name",
        "demo",
        "--sample_answers",
        2,
        "--num_prompts",
        20,
        "--max_new_tokens",
        40,
        "--check_only",
    ]
    code, output, error = call(
        "custom_dataset_dpo", *words, "--output_dir", tmp_path / "out", "--save_cleaned", tmp_path / "pairs.jsonl"
    )
    assert code == 0, error
    assert "40 to 20 prompts, scored" in output
    assert not (tmp_path / "out" / "metrics.json").exists()
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert rows and all(row["score_chosen"] > row["score_rejected"] for row in rows)


def test_what_is_to_be_saved_where_a_file_is_is_refused_before_anybody_answers(tmp_path, call, monkeypatch):
    (tmp_path / "__dropped__").mkdir()
    (tmp_path / "__dropped__" / "pairs.jsonl").write_text("")
    monkeypatch.setattr(dpo_utils, "sample_completions", None)
    words = "--dataset_name demo --sample_answers 2 --num_prompts 20 --check_only".split()
    words += ["--output_dir", tmp_path / "out", "--save_cleaned", tmp_path / "pairs.jsonl"]
    code, _, error = call("custom_dataset_dpo", *words)
    assert code == 2
    assert f"--save_cleaned: {tmp_path / '__dropped__' / 'pairs.jsonl'} is there already." in error


def test_the_policy_is_held_to_another_model_than_the_one_it_starts_from(tmp_path, call):
    first, tokenizer = dpo_utils.load_model("demo/model")
    for parameter in first.parameters():
        parameter.data.mul_(1.01)
    first.save_pretrained(tmp_path / "first")
    tokenizer.save_pretrained(tmp_path / "first")
    words = ["--dataset_name", "demo", "--reference", tmp_path / "first", "--output_dir", tmp_path / "out", *SHORT]
    code, output, error = call("custom_dataset_dpo", *words)
    assert code == 0, error
    assert f"Reference: a frozen copy of {tmp_path / 'first'}" in output
    assert "not ln 2: the policy starts from another model than its reference" in output
    made = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert made["reference"] == str(tmp_path / "first") and made["kl"] > 0.001


def test_a_reference_that_numbers_its_tokens_otherwise_is_refused(base_model_folder, tmp_path, call):
    words = ["--dataset_name", "demo", "--reference", base_model_folder, "--output_dir", tmp_path / "out", *SHORT]
    code, _, error = call("custom_dataset_dpo", *words)
    assert code == 2
    assert f"--reference {base_model_folder} has another tokenizer than the policy" in error


def prefers_the_later_seed(body) -> tuple[int, dict] | None:
    """What a server says as the model "judge": the answer with the larger number at its end is better."""
    if body["model"] != "judge":
        return None
    question = body["messages"][-1]["content"]
    a, b = (int(re.search(rf"<answer {letter} \w+>\n.* (\d+)\n", question)[1]) for letter in "AB")
    content = f"By its number.\nVerdict: {'A' if a > b else 'B'}"
    return 200, {"choices": [{"message": {"role": "assistant", "content": content}, "finish_reason": "stop"}]}


def test_a_server_answers_and_a_language_model_judges_and_neither_is_asked_twice(tmp_path, call, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where the judge keeps its answers
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"What is {n}?"}) + "\n" for n in range(6)))
    server = FakeServer()
    server.act = prefers_the_later_seed
    words = [
        "--dataset_name",
        "prompts.jsonl",
        "--sample_answers",
        3,
        "--answers_url",
        server.url,
        "--answers_model",
        "m",
    ]
    words += ["--judge_url", server.url, "--judge_model", "judge", "--check_only", "--held_out_share", 0]
    try:
        code, output, error = call("custom_dataset_dpo", *words, "--output_dir", "a", "--save_cleaned", "pairs.jsonl")
        assert code == 0, error
        asked = len(server.asked)
        assert asked == 6 * 3 + 6 * 3 * 2  # three answers, and three pairs of them in both orders
        assert call("custom_dataset_dpo", *words, "--output_dir", "b")[0] == 0
    finally:
        server.stop()
    assert len(server.asked) == asked
    assert "compares 18 pairs of answers" in output
    for pair in map(json.loads, (tmp_path / "pairs.jsonl").read_text().splitlines()):
        chosen, rejected = (int(pair[part][0]["content"].split()[-1]) for part in ("chosen", "rejected"))
        assert chosen == rejected + 2 and (pair["score_chosen"], pair["score_rejected"]) == (1.0, 0.0)


def test_a_judge_that_gives_up_half_way_ends_it_with_its_verdicts_kept(tmp_path, monkeypatch, call):
    """What it had happened to judge would make few pairs, and the round would count as finished."""
    monkeypatch.chdir(tmp_path)
    rows = [json.dumps({"prompt": f"What about {number}?"}) + "\n" for number in range(30)]
    (tmp_path / "prompts.jsonl").write_text("".join(rows))
    server = FakeServer()
    verdicts = iter(range(12))
    is_gone = True

    def act(body):
        if body["model"] != "judge":
            return None
        return (402, b"no credit left") if is_gone and next(verdicts, None) is None else prefers_the_later_seed(body)

    server.act = act
    words = ["--dataset_name", "prompts.jsonl", "--sample_answers", 2, "--answers_url", server.url]
    words += [
        "--answers_model",
        "m",
        "--judge_url",
        server.url,
        "--judge_model",
        "judge",
        "--check_only",
        "--held_out_share",
        0,
    ]
    try:
        code, _, error = call("custom_dataset_dpo", *words, "--output_dir", "a")
        assert code == 2
        assert "gave up after 5 failures in a row, the last: HTTP 402: no credit left" in error
        assert "the same command asks for the others" in error
        is_gone = False
        code, _, error = call("custom_dataset_dpo", *words, "--output_dir", "a")
        assert code == 0, error
    finally:
        server.stop()


def test_a_thought_that_a_server_leaves_in_an_answer_is_not_trained_on(tmp_path):
    server = FakeServer()
    said = {"choices": [{"message": {"content": "<think>\nHm.\n</think>\n\nParis."}, "finish_reason": "stop"}]}
    server.act = lambda body: (200, said)
    args = arguments(answers_url=server.url, answers_model="m", sample_answers=1)
    training_args = SimpleNamespace(seed=0, per_device_eval_batch_size=1)
    try:
        found = several_answers({"train": ["Where?"]}, "policy", None, None, args, training_args, dpo_utils)
    finally:
        server.stop()
    assert found["train"] == [[Sampled("Paris.", "m", True)]]


def test_a_reward_model_scores_what_the_policy_says(tmp_path, call, base_tokenizer, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, num_labels=1)
    config = LlamaConfig(vocab_size=len(base_tokenizer), pad_token_id=0, **sizes)
    LlamaForSequenceClassification(config).save_pretrained(tmp_path / "rewards")
    base_tokenizer.save_pretrained(tmp_path / "rewards")
    words = ["--dataset_name", PROJECT / "demo", "--model_name_or_path", PROJECT / "demo" / "model", "--check_only"]
    words += [
        "--sample_answers",
        2,
        "--num_prompts",
        8,
        "--max_new_tokens",
        48,
        "--judge_model",
        "rewards",
        "--output_dir",
        "out",
        "--save_cleaned",
        "pairs.jsonl",
    ]
    code, _, error = call("custom_dataset_dpo", *words)
    assert code == 0, error
    rows = [json.loads(line) for line in (tmp_path / "out" / "answers" / "train.jsonl").read_text().splitlines()]
    flat = [(row["prompt"], answer) for row in rows for answer in row["answers"] if answer["finish_reason"] == "stop"]
    score = load_reward_model("rewards", "cpu")
    expected = score([prompt for prompt, _ in flat], [answer["text"] for _, answer in flat])
    assert [answer["score"] for _, answer in flat] == pytest.approx(expected, abs=1e-5)
    assert len({answer["score"] for _, answer in flat}) > 1


@pytest.mark.thorough
def test_two_processes_sample_a_share_each_and_make_the_same_pairs(tmp_path):
    lines = (PROJECT / "demo" / "train.jsonl").read_text(encoding="utf-8").splitlines()[:30]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    words = [
        "--dataset_name",
        str(tmp_path / "pairs.jsonl"),
        "--sample_answers",
        "2",
        "--judge",
        "truth",
        *map(str, SHORT),
    ]
    words[words.index("--max_new_tokens") + 1] = "40"
    made = []
    for count in (1, 2):
        server, out = fork_server(), tmp_path / f"out {count}"
        (tmp_path / str(count)).mkdir()
        how = {"processes": count, "port": free_port(), "cwd": str(tmp_path / str(count))}
        server.start("custom_dataset_dpo", [*words, "--output_dir", str(out)], tmp_path / f"log {count}", **how)
        assert not any(server.wait()), (tmp_path / f"log {count}").read_text()
        made.append((out / "answers" / "train.jsonl").read_text())
    assert made[0] == made[1]
