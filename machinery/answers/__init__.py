"""Answers from anywhere, to prompts from anywhere: sampled here, read from files, asked of a server, kept as they come.

Take `prompts.load_prompts` for a file without pairs; `written.read_written` for answers that others have written;
`server.AnswerServer` for a model behind an OpenAI-compatible endpoint; `kept.KeptAnswers` for what is to be paid for once.
"""
