"""The evaluation script: a model against itself, log-probs that are TRL's, judges, and what can go wrong."""

import json
import math
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from conftest import PROJECT, SHORT, run_forked, run_script
from datasets import Dataset
from fake_server import FakeServer
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification
from trl import DPOConfig, DPOTrainer

from dpo_utils import Completion, load_model, load_tokenizer, pair_logps, prompt_ids
from machinery.common.errors import UserError
from machinery.common.intervals import LANGUAGE_MODEL_JUDGE, OTHER_JUDGE
from machinery.evaluation import verdict
from machinery.evaluation.metrics import (
    PairLogps,
    calibration_bins,
    calibration_error,
    distinct_share,
    preference_metrics,
    repeated_share,
)
from machinery.evaluation.verdict import Outcome, Reference, add_scores, compare, decide
from machinery.judges.endpoint import EndpointJudge
from machinery.judges.interface import Judge, JudgeError, Verdict
from machinery.judges.scores import ScoreJudge

FEW = ("--num_eval_prompts", 12, "--num_samples", 2, "--max_new_tokens", 24)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of a few steps, long enough to be another model."""
    folder = tmp_path_factory.mktemp("runs") / "basic"
    done = run_forked(
        "basic_dpo_training.py", *SHORT, "--learning_rate", "2e-3", "--adam_epsilon", "1e-4", "--output_dir", folder
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def evaluated(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    done = run_script("dpo_evaluation.py", "--model_name_or_path", trained, *FEW, "--output_dir", folder)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


# --- What it measures ---


def test_a_run_is_evaluated_against_the_reference_and_on_the_data_it_has_noted(evaluated):
    folder, output = evaluated
    metrics = json.loads((folder / "metrics.json").read_text())
    assert (metrics["reference"], metrics["dataset"], metrics["beta"]) == ("demo/model", "demo", 0.1)
    assert metrics["verdict"] in ("better", "worse", "cannot tell")
    assert metrics["kl_ci_low"] < metrics["kl"] < metrics["kl_ci_high"]
    assert metrics["win_rate_ci_low"] <= metrics["win_rate"] <= metrics["win_rate_ci_high"]
    assert metrics["kl"] > 0
    assert all(v is None or isinstance(v, str) or np.isfinite(v) for v in metrics.values())
    rows = [json.loads(line) for line in (folder / "generations.jsonl").read_text().splitlines()]
    assert len(rows) == 12 * 2
    assert {row["answers"][0]["model"] for row in rows} == {"demo/model"}
    page = (folder / "report.html").read_text()
    for title in ("Scores before and after", "Win rate by category", "Calibration", "Margin by length"):
        assert title in page
    assert "What the models write" in output


def test_the_given_pairs_are_measured_as_training_measured_them(evaluated, trained):
    at_the_end = json.loads((trained / "metrics.json").read_text())
    now = json.loads((evaluated[0] / "metrics.json").read_text())
    for name in ("eval_loss", "reward_accuracy", "reward_margin", "chosen_logp_change", "rejected_logp_change"):
        one_pair = 1 / now["pairs"] if name == "reward_accuracy" else 0  # whose margin is next to 0
        assert now[name] == pytest.approx(at_the_end[name], abs=1e-3 + one_pair), name


@pytest.mark.thorough
def test_a_model_against_itself_is_no_different(call, tmp_path):
    code, output, error = call(
        "dpo_evaluation", "--model_name_or_path", "demo/model", "--reference", "demo/model", "--dataset_name", "demo", *FEW,
        "--output_dir", tmp_path,
    )  # fmt: skip
    assert code == 0, error
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["win_rate"] == 0.5
    assert metrics["kl"] == metrics["reward_margin"] == metrics["score_change"] == 0
    assert metrics["reward_accuracy"] == 0.5  # every pair is a tie
    assert metrics["ties"] == 1
    assert metrics["verdict"] == "cannot tell"
    for line in (tmp_path / "generations.jsonl").read_text().splitlines():
        first, second = json.loads(line)["answers"]
        assert first["text"] == second["text"]
    assert "CANNOT TELL" in output


def test_log_probs_are_those_of_trl(tmp_path):
    model, tokenizer = load_model("demo/model")
    rows = [json.loads(line) for line in (PROJECT / "demo" / "test.jsonl").read_text().splitlines()[:24]]
    pairs = Dataset.from_list([{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in rows])
    for max_length in (512, 60):
        args = DPOConfig(
            output_dir=str(tmp_path),
            use_cpu=True,
            bf16=False,
            report_to=[],
            max_length=max_length,
            gradient_checkpointing=False,
        )
        trainer = DPOTrainer(load_model("demo/model")[0], args=args, train_dataset=pairs, processing_class=tokenizer)
        kept = list(range(len(trainer.train_dataset)))
        if max_length == 60:  # TRL drops rows whose prompt fills it
            lengths = [len(prompt_ids(tokenizer, row["prompt"])) for row in rows]
            kept = [n for n, length in enumerate(lengths) if length < max_length]
            trainer = DPOTrainer(
                load_model("demo/model")[0], args=args, train_dataset=pairs.select(kept), processing_class=tokenizer
            )
        batch = trainer.data_collator([trainer.train_dataset[n] for n in range(len(kept))])
        expected = trainer.compute_ref_log_probs(trainer.model.eval(), trainer._prepare_inputs(batch))
        ours = pair_logps(model, pairs.select(kept), tokenizer, max_length)
        assert torch.allclose(ours[0], expected[0], atol=1e-4, rtol=1e-5)
        assert torch.allclose(ours[1], expected[1], atol=1e-4, rtol=1e-5)


def pairs_of(policy_chosen, policy_rejected, lengths=(10, 10)):
    count = len(policy_chosen)
    zeros = np.full(count, -20.0)
    return PairLogps(
        zeros + policy_chosen,
        zeros + policy_rejected,
        zeros,
        zeros,
        np.full(count, lengths[0]),
        np.full(count, lengths[1]),
    )


def test_ties_count_half_and_are_said():
    measured = preference_metrics(pairs_of(np.array([1.0, 0.0, -1.0, 2.0]), np.zeros(4)), beta=0.1)
    assert measured["reward_accuracy"][0] == (1 + 0.5 + 0 + 1) / 4
    assert measured["ties"][0] == 0.25
    assert measured["reward_margin"][0] == pytest.approx(0.1 * 0.5)
    assert measured["perplexity_chosen_reference"][0] == pytest.approx(np.exp(2.0))  # -20 over 10 tokens


def test_the_loss_of_an_untrained_policy_is_ln_2():
    measured = preference_metrics(pairs_of(np.zeros(5), np.zeros(5)), beta=0.1)
    assert measured["eval_loss"][0] == pytest.approx(np.log(2))


def test_the_judge_that_knows_only_length():
    assert preference_metrics(pairs_of(np.ones(3), np.zeros(3), (9, 5)), 0.1)["length_only_accuracy"][0] == 1
    assert preference_metrics(pairs_of(np.ones(3), np.zeros(3), (5, 5)), 0.1)["length_only_accuracy"][0] == 0.5


def test_true_accuracy_is_held_against_the_scores_and_not_the_label():
    # the policy agrees with both labels; the second label is wrong
    measured = preference_metrics(pairs_of(np.ones(2), np.zeros(2)), 0.1, scores=([3, 1], [1, 3]))
    assert measured["reward_accuracy"][0] == 1
    assert measured["true_accuracy"][0] == 0.5


def test_pairs_without_scores_are_left_out_of_what_is_held_against_scores():
    chosen = np.arange(1.0, 7.0)
    whole = preference_metrics(pairs_of(chosen, np.zeros(6)), 0.1, scores=([2, 3, 4, 5, 6, 7], [1, 1, 1, 1, 1, 9]))
    some = preference_metrics(
        pairs_of(np.append(chosen, [-1.0, 9.0]), np.zeros(8)),
        0.1,
        scores=([2, 3, 4, 5, 6, 7, None, 1.0], [1, 1, 1, 1, 1, 9, None, float("nan")]),
    )
    for name in ("true_accuracy", "margin_score_correlation"):
        assert some[name] == whole[name]


def test_calibration_by_hand():
    # ten pairs at confidence 0.73, of which eight are right: off by |0.8 - 0.731|
    margin = np.array([1.0] * 8 + [-1.0] * 2)
    [only] = calibration_bins(margin)
    assert (only["count"], only["observed"]) == (10, 0.8)
    assert only["predicted"] == pytest.approx(1 / (1 + np.exp(-1)))
    assert calibration_error(margin) == pytest.approx(0.8 - 1 / (1 + np.exp(-1)))


def test_repetition_and_variety_by_hand():
    assert repeated_share([1, 2, 3, 1, 2, 3]) == pytest.approx(1 / 4)  # 123 231 312 123
    assert repeated_share([1, 2]) == 0
    assert distinct_share([[1, 2, 3], [1, 2, 3], [4, 5, 6]]) == pytest.approx(2 / 3)


# --- Verdicts ---


def outcome_of(wins, name="m"):
    return Outcome(name, "reference", [], np.array(wins, dtype=float), np.zeros(len(wins)))


def test_verdicts_in_words_follow_from_the_test():
    better, worse, unclear = (
        outcome_of([1] * 40 + [0] * 10),
        outcome_of([0] * 40 + [1] * 10),
        outcome_of([1] * 27 + [0] * 23),
    )
    decide([better, worse, unclear])
    assert (better.word, worse.word, unclear.word) == ("better", "worse", "cannot tell")
    assert "Cannot tell with 50 prompts" in unclear.sentences[1]
    needed = (
        (2.3940 + 0.8416) * np.std(unclear.wins, ddof=1) / 0.04
    ) ** 2  # normal quantiles of 1 - 0.025 / 3, and of 0.8
    assert f"about {int(np.ceil(needed / 10) * 10):,}" in unclear.sentences[1]
    assert "corrected for 3 comparisons" in better.sentences[0]


def test_many_models_make_it_harder_to_be_sure():
    wins = [1] * 33 + [0] * 17
    alone = outcome_of(wins)
    decide([alone])
    assert alone.word == "better"
    among = [outcome_of(wins), *(outcome_of([1, 0] * 25) for _ in range(9))]
    decide(among)
    assert among[0].word == "cannot tell"


def test_wins_are_averaged_over_a_prompt_s_answers_first():
    judge = ScoreJudge("length", lambda prompts, texts: [float(len(text)) for text in texts])
    old = [[Completion("aa", [1], [1], True)] * 2, [Completion("aa", [1], [1, 2], True)] * 2]
    new = [
        [Completion("a", [1], [1], True), Completion("aaa", [1], [1], True)],
        [Completion("aaa", [1], [1, 2, 3, 4], True)] * 2,
    ]
    outcome = compare(judge, ["p", "q"], old, new, "m", "reference")
    assert outcome.wins.tolist() == [0.5, 1.0]
    assert outcome.longer_by.tolist() == [0, 2]


class FirstWins(Judge):
    name = "a judge of the first answer"
    most_answers = 1

    def judge(self, comparisons, progress=None):
        return [Verdict(1.0, None, None) for _ in comparisons]


def test_a_judge_of_the_first_answer_is_held_against_the_length_of_the_first():
    old = [[Completion("a", [1], [1], True), Completion("a", [1], [1, 2, 3, 4], True)]]
    new = [[Completion("b", [1], [1, 2, 3], True), Completion("b", [1], [1], True)]]
    assert compare(FirstWins(), ["p"], old, new, "m", "reference").longer_by.tolist() == [2]


def test_a_judge_without_memory_leaves_what_needs_no_judge():
    class Large(FirstWins):
        def judge(self, comparisons, progress=None):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    answers = [[Completion("a", [1], [1], True)]]
    outcome = compare(Large(), ["p"], answers, answers, "m", "reference")
    assert "the judge ran out of memory" in outcome.problem
    assert np.isnan(outcome.wins).all()


def test_several_comparisons_need_more_prompts_than_six():
    outcomes = [outcome_of([1] * 6) for _ in range(3)]
    decide(outcomes)
    assert "six are the fewest that can tell, and more with several comparisons." in outcomes[0].sentences[1]


@pytest.mark.parametrize(("wins", "words"), [
    ([1] * 5, "Cannot tell with 5 prompts. Where all go one way six are the fewest that can tell."),
    ([0.5] * 200, "Cannot tell with 200 prompts. No difference was seen."),
    ([1] * 50, "So many prompts show a win rate 0.20 away from 0.5 four times out of five; a smaller one goes unseen."),
])  # fmt: skip
def test_outcomes_without_a_spread_promise_what_others_of_their_number_could_show(wins, words):
    outcome = outcome_of(wins)
    outcome.longer_by = np.arange(len(wins))
    decide([outcome])
    assert outcome.sentences[1:] == [words]
    assert outcome.measured["win_rate_length_controlled"] == outcome.measured["win_rate"]


def wins_by_length(shift, count=200):
    """An outcome whose answers are longer by `shift` standard deviations and win by that alone, slope 1.5."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=count)
    longer_by = 20 * ((z - z.mean()) / z.std() + shift)
    outcome = outcome_of(rng.random(count) < 1 / (1 + np.exp(-1.5 * np.tanh(longer_by / 20))))
    outcome.longer_by = longer_by
    return outcome


def test_win_rate_and_length_that_go_together_are_said_to_and_not_to_be_the_judges_liking():
    outcome = wins_by_length(0.8)
    decide([outcome])
    sentence = outcome.sentences[-1]
    assert sentence.startswith("Win rate and length go together: answers of m are 16.0 tokens longer in the mean")
    assert f" beside {outcome.measured['win_rate'][0]:.2f} [" in sentence
    assert sentence.endswith("Whether length itself or what comes with it decides, this cannot tell.")
    assert "AlpacaEval" not in sentence


def test_a_shift_of_length_beyond_a_standard_deviation_is_called_extrapolation():
    outcome = wins_by_length(-1.5)
    decide([outcome], LANGUAGE_MODEL_JUDGE)
    sentence = outcome.sentences[-1]
    assert "30.0 tokens shorter in the mean, 1.5 standard deviations of that difference" in sentence
    assert "at equal length is extrapolation" in sentence
    assert sentence.endswith("as judged. The slope is near that of AlpacaEval's judge.")
    fair, raw = outcome.measured["win_rate_length_controlled"][0], outcome.measured["win_rate"][0]
    assert f"{fair:.2f} [" in sentence.partition(" beside ")[0]  # no figure without the other
    assert f"{raw:.2f} [" in sentence.partition(" beside ")[2]


def test_where_length_explains_nothing_nothing_is_said_of_it():
    outcome = outcome_of([1, 0, 0.5, 1] * 50)
    outcome.longer_by = np.array([1, 1, 1, 1, -1, -1, -1, -1] * 25)
    decide([outcome])
    assert outcome.measured["win_rate_length_controlled"][0] == pytest.approx(0.625, abs=1e-3)
    assert "ength" not in " ".join(outcome.sentences)


def test_where_all_are_longer_by_the_same_there_is_no_rate_at_equal_length():
    outcome = outcome_of([1, 0, 1, 1])
    outcome.longer_by = np.full(4, 7.0)
    decide([outcome])
    assert "win_rate_length_controlled" not in outcome.measured


def test_only_a_language_model_gets_the_prior_of_language_models(monkeypatch):
    heard = []
    monkeypatch.setattr(verdict, "decide", lambda outcomes, prior: heard.append(prior))
    reference = Reference("r", None, None, (), [[Completion("a", [1], [1], True)]], np.zeros((1, 1)))
    endpoint = EndpointJudge("http://localhost:1", "judge", None, "unused.jsonl")
    monkeypatch.setattr(endpoint, "judge", FirstWins().judge)
    for judge in (endpoint, FirstWins()):
        verdict.judge_all(judge, ["p"], reference, [{"model": "m", "answers": reference.answers, "measured": {}}])
    assert heard == [LANGUAGE_MODEL_JUDGE, OTHER_JUDGE]


def test_a_judge_that_fails_on_a_control_only_costs_that_control():
    class NotGreedily(FirstWins):
        def judge(self, comparisons, progress=None):
            if comparisons[0].first == "greedy":
                raise JudgeError("it gave no number")
            return super().judge(comparisons)

    answers, greedy = ([[Completion(text, [1], [1], True)]] * 8 for text in ("a", "greedy"))
    reference = Reference("r", None, None, (), answers, np.zeros((8, 1)))
    controls = {verdict.MATCHED: (answers, answers), verdict.GREEDY: (greedy, greedy)}
    entropies = dict.fromkeys(verdict.ENTROPIES, (1.0, math.nan, math.nan))
    result = {"model": "m", "answers": answers, "measured": entropies, "controls": controls}
    [outcome] = verdict.judge_all(NotGreedily(), ["p"] * 8, reference, [result])
    assert outcome.word == "better"
    assert list(outcome.controls) == [verdict.MATCHED]
    assert outcome.problem == "it gave no number"


def test_the_least_difference_counts_the_comparisons_and_is_one():
    one, of_ten = outcome_of([0, 1] * 100), [outcome_of([0, 1] * 100) for _ in range(10)]
    decide([one])
    decide(of_ten)
    assert "a win rate 0.10 away from 0.5" in one.sentences[-1]
    assert "a win rate 0.13 away from 0.5" in of_ten[0].sentences[-1]
    few = outcome_of([0, 1, 1, 0])
    decide([few])
    assert "away from 0.5" not in " ".join(few.sentences)


def test_log_probs_that_overflow_are_named():
    with pytest.raises(UserError, match=r"policy_chosen of pair 2 is nan \(1 of 3 pairs\)"):
        preference_metrics(pairs_of(np.array([1.0, np.nan, 2.0]), np.zeros(3)), 0.1)


def test_the_best_of_the_old_answers_is_picked_by_the_implicit_reward():
    verdicts = [[Verdict(1, None, (1.0, 3.0)), Verdict(0, None, (5.0, 3.0))]]
    result = {"measured": {}, "implicit": np.array([[0.1, 0.4]])}
    add_scores(result, Outcome("m", "r", verdicts, np.array([0.5]), np.zeros(1)))
    assert result["measured"]["score_best_of_n"][0] == 5.0
    assert result["measured"]["score_reference"][0] == 3.0


# --- Other models, other judges ---


@pytest.fixture
def fake_server():
    server = FakeServer()
    yield server
    server.stop()


@pytest.mark.thorough
def test_several_models_are_put_against_each_other(call, trained, tmp_path):
    code, output, error = call("dpo_evaluation", "--models", trained, "demo/model", *FEW, "--output_dir", tmp_path)
    assert code == 0, error
    assert "Each against each other" in output
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["demo/model/win_rate"] == 0.5
    assert f"{trained}/win_rate" in metrics
    assert (tmp_path / "report.html").read_text().count("Calibration") >= 2


def test_pairs_of_ones_own_without_a_judge(call, tmp_path):
    rows = [{"prompt": f"Why {n}?", "chosen": f"So {n}.", "rejected": "No."} for n in range(6)]
    rows = [
        row | ({"category": "why", "score_chosen": 2, "score_rejected": 1} if n % 2 else {})
        for n, row in enumerate(rows)
    ]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, output, error = call(
        "dpo_evaluation", "--models", "demo/model", PROJECT / "demo" / "model", "--reference", "demo/model", "--beta", 0.5,
        "--dataset_name", tmp_path / "own.jsonl", *FEW, "--output_dir", tmp_path / "e",
    )  # fmt: skip
    assert code == 0, error
    assert "Each against each other" not in output  # a table of nothing
    assert json.loads((tmp_path / "e" / "metrics.json").read_text())["demo/model/beta"] == 0.5
    page = (tmp_path / "e" / "report.html").read_text()
    assert "6 pairs" in page and "The data has no test split" in page
    assert "Reward accuracy by category" in page


@pytest.mark.thorough
def test_an_adapter_is_evaluated_on_its_base_and_needs_it(call, tmp_path):
    run = run_forked("lora_dpo_training.py", *SHORT, "--output_dir", tmp_path / "lora")
    assert run.returncode == 0, run.stderr
    code, _, error = call(
        "dpo_evaluation", "--model_name_or_path", tmp_path / "lora", *FEW, "--output_dir", tmp_path / "e"
    )
    assert code == 0, error
    config = tmp_path / "lora" / "adapter_config.json"
    config.write_text(config.read_text().replace(str((PROJECT / "demo" / "model").resolve()), "/gone/model"))
    code, _, error = call(
        "dpo_evaluation", "--model_name_or_path", tmp_path / "lora", *FEW, "--output_dir", tmp_path / "f"
    )
    assert code == 2
    assert "is gone: /gone/model" in error


def test_a_person_judges_blind(call, trained, tmp_path):
    words = ["dpo_evaluation", "--model_name_or_path", trained, "--judge", "human", *FEW]
    code, output, error = call(*words, "--output_dir", tmp_path / "a")
    assert code == 0, error
    assert "blind.csv" in output
    table = tmp_path / "a" / "blind.csv"
    lines = table.read_text(encoding="utf-8-sig").splitlines()
    assert "verdict" in lines[0]
    code, _, error = call(*words, "--overwrite_output_dir", "--output_dir", tmp_path / "a")
    assert code == 0, error  # table and key are the run's own, so they are replaced
    import csv

    with open(table, encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["verdict"] = "tie"
    with open(table, "w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    code, _, error = call(*words[: -len(FEW) - 2], *FEW, "--answers", table, "--output_dir", tmp_path / "b")
    assert code == 0, error
    metrics = json.loads((tmp_path / "b" / "metrics.json").read_text())
    assert (metrics["judge"], metrics["win_rate"]) == ("a person", 0.5)


def test_a_reward_model_judges(call, trained, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained("demo/model")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    LlamaForSequenceClassification(config).save_pretrained(tmp_path / "rm")
    tokenizer.save_pretrained(tmp_path / "rm")
    code, output, error = call(
        "dpo_evaluation",
        "--model_name_or_path",
        trained,
        "--judge_model",
        tmp_path / "rm",
        *FEW,
        "--output_dir",
        tmp_path / "e",
    )
    assert code == 0, error
    assert json.loads((tmp_path / "e" / "metrics.json").read_text())["judge"].startswith("the reward model")
    assert "with its own likings" in output


def test_a_function_of_ones_own_judges_all_answers_and_is_tried_first(call, trained, tmp_path):
    rules = tmp_path / "rules.py"
    rules.write_text("def score(prompt, answer):\n    return len(answer) if prompt[-1]['role'] == 'user' else None\n")
    words = ["dpo_evaluation", "--model_name_or_path", trained, *FEW]
    code, _, error = call(*words, "--judge", f"{rules}:score", "--output_dir", tmp_path / "e")
    assert code == 0, error
    rows = [json.loads(line) for line in (tmp_path / "e" / "generations.jsonl").read_text().splitlines()]
    assert len(rows) == 12 * 2
    assert all(answer["score"] == len(answer["text"]) for row in rows for answer in row["answers"])
    metrics = json.loads((tmp_path / "e" / "metrics.json").read_text())
    assert metrics["judge"] == f"--judge {rules}:score"
    assert "win_rate_greedy" in metrics  # a judge of scores is free
    rules.write_text(rules.read_text() + "score.is_language_model = True\n")
    code, output, error = call(*words, "--judge", f"{rules}:score", "--output_dir", tmp_path / "l")
    assert code == 0, error
    assert "entropy was not controlled" in output  # and a language model is not
    rules.write_text("def score(prompt, answer):\n    return prompt.lower()\n")
    code, _, error = call(*words, "--judge", f"{rules}:score", "--output_dir", tmp_path / "f")
    assert code == 2
    assert "rules.py:score failed in row 0, for the answer 'I do not know.'" in error
    assert "object has no attribute 'lower'. It is given the prompt as a list of turns" in error
    assert not (tmp_path / "f").exists()


def test_prompts_that_are_texts_in_the_file_are_texts_for_the_function(call, tmp_path):
    rows = [{"prompt": f"Why {n}?", "chosen": f"So {n}.", "rejected": "No."} for n in range(6)]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "rules.py").write_text("def score(prompt, answer):\n    return int(prompt.strip('Why ?'))\n")
    words = [
        "--model_name_or_path",
        "demo/model",
        "--reference",
        "demo/model",
        "--dataset_name",
        tmp_path / "own.jsonl",
    ]
    words += ["--judge", f"{tmp_path}/rules.py:score", *FEW, "--output_dir", tmp_path / "e"]
    code, _, error = call("dpo_evaluation", *words)
    assert code == 0, error
    assert json.loads((tmp_path / "e" / "metrics.json").read_text())["score"] == 2.5


def test_an_endpoint_judges_all_answers_is_asked_ones_own_question_and_nothing_twice(
    call, trained, tmp_path, monkeypatch, fake_server
):
    monkeypatch.chdir(tmp_path)  # where its answers are kept
    (tmp_path / "rubric.txt").write_text("Kinder?\n{prompt}\n1: {answer_a}\n2: {answer_b}\nEnd with Verdict: A or B.")
    told = {"choices": [{"message": {"content": "Verdict: A"}, "finish_reason": "stop"}]}
    fake_server.act = lambda body: (500, b"busy") if len(fake_server.asked) > 6 else (200, told)
    words = [
        "--model_name_or_path",
        trained,
        "--reference",
        PROJECT / "demo" / "model",
        "--dataset_name",
        PROJECT / "demo",
    ]
    words += [
        "--judge_url",
        fake_server.url,
        "--judge_model",
        "m",
        "--judge_samples",
        2,
        "--judge_prompt",
        "rubric.txt",
    ]
    words += ["--judge_max_tokens", 77, *FEW, "--output_dir"]
    monkeypatch.setattr("machinery.judges.flags.EndpointJudge", partial(EndpointJudge, attempts=1, concurrency=1))
    code, _, error = call("dpo_evaluation", *words, "a")
    assert code == 0, error
    answered = fake_server.asked[:6]
    fake_server.act = lambda body: (200, told)
    code, output, error = call("dpo_evaluation", *words, "b")
    assert code == 0, error
    metrics = json.loads((tmp_path / "b" / "metrics.json").read_text())
    asked = [json.loads(body) for body in fake_server.asked]
    rows = [json.loads(line) for line in (tmp_path / "b" / "generations.jsonl").read_text().splitlines()]
    differing = [row for row in rows if row["reason"] != "the answers are the same"]
    assert [row["win"] for row in rows] == [0.5] * 24  # all answers, and not the first alone
    assert metrics["asked_in_both_orders"] == len(differing) > 6
    assert not set(answered) & set(fake_server.asked[6:])
    assert {(body["max_tokens"], body["messages"][0]["content"][:8]) for body in asked} == {(77, "Kinder?\n")}
    assert metrics["order_decided"] == 1
    assert "the order of the answers decided 100% of the judge's verdicts" in output


@pytest.mark.thorough
def test_what_needs_no_judge_is_kept_when_the_judge_never_answers(call, trained, tmp_path, monkeypatch):
    async def no_wait(seconds):
        pass

    monkeypatch.setattr("machinery.judges.flags.EndpointJudge", partial(EndpointJudge, wait=no_wait))
    code, _, error = call(
        "dpo_evaluation", "--model_name_or_path", trained, "--judge_url", "http://127.0.0.1:9/v1", "--judge_model", "nobody",
        *FEW, "--output_dir", tmp_path,
    )  # fmt: skip
    assert code == 2
    assert "What needs no judge is in" in error
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["verdict"] == "not judged"
    assert metrics["kl"] > 0


def test_another_tokenizer_is_said_and_log_probs_are_left_out(call, base_model_folder, tmp_path):
    code, output, error = call(
        "dpo_evaluation", "--model_name_or_path", base_model_folder, "--reference", "demo/model", "--dataset_name", "demo", *FEW,
        "--output_dir", tmp_path,
    )  # fmt: skip
    assert code == 0, error
    assert "another tokenizer" in output
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert "kl" not in metrics
    assert "win_rate" in metrics
    tokenizer = load_tokenizer("demo/model")  # lengths are compared, so both are counted by one
    rows = map(json.loads, (tmp_path / "generations.jsonl").read_text().splitlines())
    for answer in (answer for row in rows for answer in row["answers"]):
        counted = len(tokenizer(answer["text"])["input_ids"])
        assert counted <= answer["tokens"] <= counted + 1  # with the EOS


def test_a_chat_model_is_evaluated_in_its_form_though_the_reference_has_none(call, tmp_path):
    base = shutil.copytree(PROJECT / "demo" / "model", tmp_path / "base")
    tokenizer = load_tokenizer(base)
    tokenizer.chat_template = None
    (base / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer.save_pretrained(base)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"Is number {number} in stock?"}) + "\n" for number in range(8)))
    words = ["--models", "demo/model", "--reference", base, "--dataset_name", prompts, *FEW]
    for plain in (False, True):
        out = tmp_path / str(plain)
        code, output, error = call("dpo_evaluation", *words, *(["--keep_plain"] if plain else []), "--output_dir", out)
        assert code == 0, error
        assert ("every prompt becomes a user's turn" in output) is not plain
        [row, *_] = map(json.loads, (out / "generations.jsonl").read_text().splitlines())
        assert isinstance(row["prompt"], str) is plain


@pytest.mark.thorough
def test_without_a_run_the_basic_one_is_trained_first(call, trained, tmp_path, monkeypatch):
    def train():
        note = shutil.copytree(trained, tmp_path / "runs" / "basic") / "metrics.json"
        facts = json.loads(note.read_text())
        facts |= {name: str(PROJECT / facts[name]) for name in ("model", "reference", "dataset")}
        note.write_text(json.dumps(facts))
        return "runs/basic"

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("machinery.answers.sources.train_basic", train)
    code, output, error = call("dpo_evaluation", *FEW)
    assert code == 0, error
    assert "Evaluating runs/basic" in output
    assert (tmp_path / "runs" / "evaluation" / "report.html").exists()
