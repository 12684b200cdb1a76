"""Is the model better? What judges and the log-probs say with intervals, verdicts in words, the report.

Take `verdict` for a win rate that says how sure it is; `metrics` for log-probs of given pairs. Uses judges/ and common/.
"""
