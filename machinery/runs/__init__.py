"""One run from its folder to its last file: start, checkpoints that a kill cannot spoil, interrupts, failures, results.

Take `checkpoints.complete_checkpoints` for manifests, `interrupts.SaveOnSignal`, `folder.claim_output_dir`. Uses common/,
models/, hardware/ and watching/.
"""
