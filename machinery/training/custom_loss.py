"""Train with any loss of a pair's log-probs, and leave all else to the trainer: forward pass, reference, metrics, PEFT.

    class IPOTrainer(CustomLoss, DPOTrainer): ...          # trl's, or the shared-prompt trainer

    IPOTrainer(model=policy, args=args, train_dataset=pairs, processing_class=tokenizer, loss=ipo)

A loss takes beta, four log-probs and two lengths by name, see losses.py, and returns one number a pair. TRL 1.16 has
no place for one: its losses are branches of a method that also runs the model and logs every metric.
"""

from trl import DPOConfig

from ..common.errors import UserError
from .losses import name_of, only_in_trl, uses_reference
from .sealed_maps import nothing_kept


class CustomLoss:
    """Before TRL's DPOTrainer among a class's bases: its `loss` takes the place of TRL's own."""

    def __init__(self, model, ref_model=None, args=None, *others, loss, **kwargs):
        """loss: a function with its hyperparameters filled in; None leaves the loss to TRL too.

        The rest is TRL's. UserError for an option of `args` that only TRL's own losses follow.
        """
        args = args or DPOConfig("trainer_output")
        self.loss, self.needs_reference = loss, uses_reference(loss)
        if loss is not None and (options := only_in_trl(args)):
            raise UserError(f"--{options[0]} is TRL's, for its own losses, and {name_of(loss)} would not follow it")
        if not self.needs_reference:
            args.precompute_ref_log_probs, args.sync_ref_model = True, False  # zeros, see below: no reference is asked
        super().__init__(model, ref_model, args, *others, **kwargs)
        if loss is not None:
            if args.loss_type == ["sigmoid"]:  # TRL's default: nobody has said what the loss is called
                args.loss_type = [name_of(loss)]
            self.loss_types, self.loss_weights = ["sigmoid"], [1.0]  # TRL's metrics come with a loss; it is not used

    def _precompute_ref_logps(self, dataset, name, batch_size):
        if self.needs_reference:
            return super()._precompute_ref_logps(dataset, name, batch_size)
        with nothing_kept():
            return dataset.map(lambda row: {"ref_chosen_logps": 0.0, "ref_rejected_logps": 0.0})

    def _compute_loss(self, model, inputs, return_outputs):
        """TRL's method runs the model, logs every metric and computes a loss, all in one.

        So it runs on a model that we listen to: its metrics stay, and our loss takes the place of its own.
        """
        if self.loss is None:
            return super()._compute_loss(model, inputs, return_outputs)
        if "ref_chosen_logps" not in inputs:
            ref_chosen_logps, ref_rejected_logps = self.compute_ref_log_probs(self.ref_model or self.model, inputs)
            inputs = {**inputs, "ref_chosen_logps": ref_chosen_logps, "ref_rejected_logps": ref_rejected_logps}

        heard = []  # what the policy returns to TRL, log-probs among it

        def listen(**kwargs):
            heard.append(model(**kwargs))
            return heard[-1]

        asked = self.precompute_ref_logps
        self.precompute_ref_logps = True  # TRL finds the reference's log-probs in the inputs
        try:
            result = super()._compute_loss(listen, inputs, return_outputs)
        finally:
            self.precompute_ref_logps = asked

        is_completion = inputs["completion_mask"][:, 1:]  # (2B, L - 1), the chosen rows first
        # Log-probs are 0 outside the completions. The slice leaves out what an adapter has put before the tokens.
        logps = heard[0].log_probs[:, -is_completion.shape[1] :].sum(dim=1)
        policy_chosen_logps, policy_rejected_logps = logps.chunk(2)
        chosen_lengths, rejected_lengths = is_completion.sum(dim=1).chunk(2)
        loss = self.loss(
            beta=self.beta,
            policy_chosen_logps=policy_chosen_logps,
            policy_rejected_logps=policy_rejected_logps,
            ref_chosen_logps=inputs["ref_chosen_logps"],
            ref_rejected_logps=inputs["ref_rejected_logps"],
            chosen_lengths=chosen_lengths,
            rejected_lengths=rejected_lengths,
        ).mean()
        if self.aux_loss_enabled:
            loss = loss + self.router_aux_loss_coef * heard[0].aux_loss
        return (loss, result[1]) if return_outputs else loss
