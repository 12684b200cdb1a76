"""What is loaded from disk: whether it is sound, which base an adapter belongs to, weights that lie in pieces.

Take `checks.look_at` and `checks.check_loaded` around `from_pretrained`; `adapters.merge_adapter` to add an adapter to its
base with proof. Uses common/.
"""
