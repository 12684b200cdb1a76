"""The trainer: each prompt once, the head on answers only, the reference asked once, any loss plugged in.

Take `shared_prompt.SharedPromptDPOTrainer` in place of trl.DPOTrainer, `custom_loss.CustomLoss` before it or before TRL's
among a class's bases. Uses shared_rows/ and common/.
"""
