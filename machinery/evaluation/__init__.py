"""Is the model better? Judges, what they and the log-probs say with intervals, verdicts in words, the report.

Take `judges` for a win rate by a score, a reward model, a language model behind an endpoint, or a person; `metrics` for
log-probs of given pairs. Uses common/.
"""
