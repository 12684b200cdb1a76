"""Two answers in one row behind their prompt: who sees whom, the kernel and the head, and whether it is all exact.

Take `shared_masks.layer_masks` for the mask, `cpu_head.cpu_head` for a head that works on answers only,
`probe.check_head` to hold TRL's log-probs to a model's own. Uses common/.
"""
