"""An algorithm of your own in sixty lines: the policy imitates its own responses, the better ones more.

    python -m lit_rlhf fit --config examples/own_algorithm.yaml --trust examples.own_algorithm

Reward-weighted regression (Peters and Schaal, 2007). At a price of beta per nat, the best policy is the reference with
each response weighted by exp(score / beta): docs/algorithms/ppo.md, (3). So draw k responses to a prompt, give them
these weights, and imitate them:

    loss = - mean over tokens of w(y) log pi(y_t | x, y_<t)
    w = k softmax(score / beta), over the responses to x

Prompts, sampling, rewards, packing, accumulation, ranks, clipping, metrics and checkpoints are parts of the house; what
is written here is what is new. docs/adding_an_algorithm.md goes through it.
"""

from functools import partial

from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from lit_rlhf import BackboneConfig
from lit_rlhf.losses.kl import kl_k3
from lit_rlhf.models.building import build_policy
from lit_rlhf.models.checkpoints import drop_frozen
from lit_rlhf.rewards import WeightedReward
from lit_rlhf.rollout.iterations import Iterations
from lit_rlhf.rollout.learning import TokenLosses
from lit_rlhf.rollout.options import KLOptions, ScoreOptions, UpdateOptions
from lit_rlhf.rollout.packing import RolloutMicroBatch, packed_values
from lit_rlhf.rollout.sampling.request import SamplingOptions
from lit_rlhf.schedules import WarmupDecay, optimization
from lit_rlhf.types import PromptBatch, Rollouts


class RewardWeightedModule(LightningModule):
    """Imitates its own responses, each with the weight that its score gives it among those to its prompt.

    Args:
        backbone: the policy to train.
        rewards: what scores responses, summed by weight.
        sampling: how responses are drawn; several to each prompt.
        optimizer: makes the optimizer from the trained parameters.
        beta: difference of scores that makes a response e times as heavy; towards 0 only the best one counts.
    """

    def __init__(
        self,
        backbone: BackboneConfig,
        rewards: list[WeightedReward],
        sampling: SamplingOptions,
        optimizer: OptimizerCallable,
        beta: float = 0.5,
    ) -> None:
        super().__init__()
        self.automatic_optimization = self.strict_loading = False
        self.backbone, self.optimizer, self.beta = backbone, optimizer, beta
        kl, scores, once = KLOptions(), ScoreOptions(), UpdateOptions(num_epochs=1, num_minibatches=1)
        self.iterations = Iterations(rewards, sampling, None, kl, scores, once, 0, ["nll"])
        self.phases = self.iterations.phases

    def configure_model(self) -> None:
        """Load the policy."""
        if "model" not in self._modules:
            self.model = build_policy(self.backbone, None)
            self.iterations.open(self, self.model, None)

    def training_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """Prompts -> groups of responses -> scores -> weights -> one step of imitation."""
        scored = self.iterations.collect(self.model, batch)
        measures = self.iterations.measure(self.model, scored.rollouts)
        self.iterations.watch(scored, measures.logprobs, measures.ref_logprobs, entropy=measures.entropy)
        weights = self.weights(scored.scores)[:, None] * scored.rollouts.response_mask
        losses_of = partial(self.losses, rollouts=scored.rollouts, weights=weights, old_logprobs=measures.logprobs)
        self.iterations.end(self, self.iterations.learn(self, scored.rollouts, losses_of, self.model.idle))

    def weights(self, scores: Tensor) -> Tensor:
        """(L,) weights from (L,) scores, 1 on average; the k responses to a prompt stand one after another."""
        num_responses = self.iterations.sampling.num_responses
        return (scores.view(-1, num_responses) / self.beta).softmax(1).flatten() * num_responses

    def losses(self, part: RolloutMicroBatch, rollouts: Rollouts, weights: Tensor, old_logprobs: Tensor) -> TokenLosses:
        """(N,) the loss of each token of a micro-batch, and how far the policy is from the one that drew it."""
        logprobs = self.iterations.measurer.policy(self.model, part).logprobs
        old = packed_values(old_logprobs, rollouts, part)
        losses = -packed_values(weights, rollouts, part) * logprobs
        self.iterations.note({"nll": losses})
        return TokenLosses(losses, kl_k3(old, logprobs.detach()), (logprobs.detach() - old).exp())

    def validation_step(self, batch: PromptBatch, batch_idx: int) -> list[dict[str, object]]:
        """Responses to held-out prompts."""
        return self.iterations.answer(self.model, batch)

    def on_validation_epoch_end(self) -> None:
        """Log the means over them."""
        self.iterations.log_held_out(self, "val")

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """One optimizer over what is trained, one schedule stepped with each iteration."""
        return optimization(self, self.optimizer, WarmupDecay)

    def on_save_checkpoint(self, checkpoint: dict[str, object]) -> None:
        """Leave the frozen base out."""
        drop_frozen(checkpoint, self.model, "model.")
