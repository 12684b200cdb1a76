"""From any file to the pairs that are trained on.

Take `load.load_pairs` for all of it; `doctor.Checkup` to examine pairs that you have already; `files.open_splits` to read
rows and know of each where it stood; `tokens.tokenise` for a pair in tokens. Uses common/.
"""
