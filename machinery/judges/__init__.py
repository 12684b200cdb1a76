"""Judges that say which of two answers to a prompt is better: truth or scores, a reward model, a language model, a person.

Take `interface` for what every judge is; `scores`, `reward_model`, `endpoint`, `person` for those there are; `flags` for
the one that a command line names. Uses common/.
"""
