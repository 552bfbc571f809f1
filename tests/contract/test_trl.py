"""Our losses and advantages equal TRL's own, value and gradient, on random inputs.

TRL's methods are called unbound, on a stand-in that has just the attributes they read; nothing of TRL is re-derived.
TRL is a development dependency: where it is missing, these tests fail.
"""

import warnings
from collections import defaultdict
from functools import cache
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from raftdiff.llm.learning.policy_gradient import clipped_objective
from raftdiff.llm.learning.preference_losses import (
    dpo,
    hinge,
    ipo,
    kto,
    kto_reference_point,
    orpo,
    reference_margin,
    robust_dpo,
    simpo,
)
from raftdiff.llm.model.tokens import aggregate, entropy, log_probabilities, means, sums
from raftdiff.selection.advantages import dr_grpo, grpo, kl_corrected, rloo

SEEDS = range(3)
NAN = float("nan")


TRL = {
    "CPOTrainer": "experimental.cpo.cpo_trainer",
    "ORPOTrainer": "experimental.orpo.orpo_trainer",
    "DPOTrainer": "trainer.dpo_trainer",
    "GRPOTrainer": "trainer.grpo_trainer",
    "KTOTrainer": "trainer.kto_trainer",
    "RLOOTrainer": "trainer.rloo_trainer",
    "entropy_from_logits": "trainer.utils",
    "selective_log_softmax": "trainer.utils",
}
"""What is compared with, and where it lies."""


@cache
def trl():
    """TRL's own, imported by whoever runs these tests and not by whoever only collects them: it takes long."""
    with warnings.catch_warnings():  # what importing somebody else's package warns of is not our failure
        warnings.simplefilter("ignore")
        found = {name: getattr(import_module(f"trl.{module}"), name) for name, module in TRL.items()}
    return SimpleNamespace(**found)


def same(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=2e-6)


class Accelerator:
    """One process: gathering and reducing give back what they got."""

    device = torch.device("cpu")
    num_processes, process_index, sync_gradients = 1, 0, True

    def gather(self, tensor):
        return tensor

    gather_for_metrics = gather

    def reduce(self, tensor, reduction):
        del reduction
        return tensor


class Model(torch.nn.Module):
    """Its fused head reports these log-probabilities, whatever it reads."""

    is_gradient_checkpointing = False

    def __init__(self, log_probs):
        super().__init__()
        shape = log_probs.shape
        self.outputs = SimpleNamespace(
            log_probs=log_probs,
            entropy=torch.zeros(shape),
            mean_logits=torch.zeros(shape),
            is_top1=torch.zeros(shape, dtype=torch.bool),
        )

    def forward(self, **inputs):
        del inputs
        return self.outputs


def answers(rows, seed, targets=7):
    """Log-probabilities of a policy and of another near it, 0 outside the mask as TRL's are, and the mask."""
    torch.manual_seed(seed)
    mask = torch.arange(targets) >= torch.randint(0, 3, (rows, 1))
    mask &= torch.arange(targets) < torch.randint(4, targets + 1, (rows, 1))
    policy = torch.where(mask, -3 * torch.rand(rows, targets), 0.0)
    other = torch.where(mask, policy + 0.5 * torch.randn(rows, targets), 0.0)
    return policy, other, mask


def tokens_of(mask):
    """The keys of a batch that TRL's pair and label losses read besides the log-probabilities."""
    whole = torch.cat([torch.zeros(len(mask), 1, dtype=torch.long), mask.long()], dim=1)
    return {"input_ids": torch.ones_like(whole), "attention_mask": torch.ones_like(whole), "completion_mask": whole}


def trainer(**attributes):
    """What every method reads."""
    return SimpleNamespace(
        accelerator=Accelerator(),
        aux_loss_enabled=False,
        args=SimpleNamespace(
            gradient_checkpointing_kwargs=None,
            delta=None,
            use_bias_correction_kl=False,
            steps_per_generation=1,
            gradient_accumulation_steps=1,
            per_device_train_batch_size=64,
        ),
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
        **attributes,
    )


# --- tokens ---


@pytest.mark.parametrize("seed", SEEDS)
def test_log_probabilities_and_entropy(seed):
    torch.manual_seed(seed)
    logits, ids = 3 * torch.randn(4, 6, 11), torch.randint(11, (4, 6))
    same(log_probabilities(logits, ids), trl().selective_log_softmax(logits[:, :-1], ids[:, 1:]))
    same(entropy(logits), trl().entropy_from_logits(logits))


# --- pairs ---


def trl_dpo(loss_type, policy, reference, mask, *, smoothing=0.0, beta=0.3):
    stand_in = trainer(
        model=Model(policy),
        ref_model=Model(reference),
        beta=beta,
        label_smoothing=smoothing,
        loss_types=[loss_type],
        loss_weights=[1.0],
        f_divergence_type="reverse_kl",
        ld_alpha=None,
        precompute_ref_logps=False,
        use_weighting=False,
    )
    return trl().DPOTrainer._compute_loss(stand_in, stand_in.model, tokens_of(mask), False)


def h_of(policy, reference, mask, reduce):
    (pc, pr), (qc, qr) = reduce(policy, mask).chunk(2), reduce(reference, mask).chunk(2)
    return reference_margin(pc, qc, pr, qr)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("loss_type", "smoothing", "ours"),
    [
        ("sigmoid", 0.0, lambda h, b: dpo(h(sums), b)),
        ("hinge", 0.0, lambda h, b: hinge(h(sums), b)),
        ("robust", 0.1, lambda h, b: robust_dpo(h(sums), b, 0.1)),
        ("ipo", 0.0, lambda h, b: ipo(h(means), b)),  # TRL takes IPO's margin of token means
        ("sigmoid_norm", 0.0, lambda h, b: dpo(h(means), b)),
    ],
)
def test_pair_losses_with_a_reference(loss_type, smoothing, ours, seed):
    policy, reference, mask = answers(10, seed)
    mine, theirs = policy.clone().requires_grad_(), policy.clone().requires_grad_()
    loss = ours(lambda reduce: h_of(mine, reference, mask, reduce), 0.3).mean()
    expected = trl_dpo(loss_type, theirs, reference, mask, smoothing=smoothing)
    same(loss, expected)
    loss.backward()
    expected.backward()
    same(mine.grad[mask], theirs.grad[mask])


@pytest.mark.parametrize("seed", SEEDS)
def test_smoothed_dpo(seed):
    """TRL's sigmoid loss has no smoothing any more; its "aot" loss of a single pair is cDPO, and CPO's of h too."""
    policy, reference, mask = answers(2, seed)
    h = h_of(policy, reference, mask, sums)
    same(dpo(h, 0.3, smoothing=0.2).mean(), trl_dpo("aot", policy, reference, mask, smoothing=0.2))
    h = torch.randn(20)
    stand_in = trainer(alpha=0.0, beta=0.3, loss_type="sigmoid", label_smoothing=0.2)
    same(dpo(h, 0.3, smoothing=0.2), trl().CPOTrainer.cpo_loss(stand_in, h, torch.zeros(20))[0])


@pytest.mark.parametrize("seed", SEEDS)
def test_simpo_and_orpo(seed):
    torch.manual_seed(seed)
    avg_c, avg_r = -4 * torch.rand(2, 20)
    stand_in = trainer(alpha=0.0, beta=2.0, simpo_gamma=0.7, loss_type="simpo", label_smoothing=0.0)
    same(simpo(avg_c, avg_r, 2.0, 0.7), trl().CPOTrainer.cpo_loss(stand_in, avg_c, avg_r)[0])
    # TRL adds the chosen answer's NLL later
    gains = trl().ORPOTrainer.odds_ratio_loss(trainer(beta=0.25), avg_c, avg_r)[0]
    same(orpo(avg_c, avg_r, 0.25) + avg_c, -gains)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("drift", [-1.0, 1.0])  # below 0 the reference point is clamped
def test_kto(seed, drift):
    policy, reference, mask = answers(8, seed)
    mismatched = torch.randn(8) + drift
    labels = torch.tensor([True, False, True, True, False, False, True, False])
    mine, theirs = policy.clone().requires_grad_(), policy.clone().requires_grad_()
    h = sums(mine, mask) - sums(reference, mask)
    z = kto_reference_point(mismatched)
    loss = kto(h, labels, z, 0.3, desirable_weight=1.2, undesirable_weight=0.8).mean()

    stand_in = trainer(
        model=Model(theirs),
        ref_model=Model(reference),
        beta=0.3,
        loss_type="kto",
        calculate_KL=True,
        desirable_weight=1.2,
        undesirable_weight=0.8,
        precompute_ref_logps=False,
    )
    stand_in._compute_kl_logps = lambda model, batch: mismatched if model is stand_in.model else torch.zeros(8)
    expected = trl().KTOTrainer._compute_loss(stand_in, stand_in.model, {**tokens_of(mask), "label": labels}, False)
    same(loss, expected)
    loss.backward()
    expected.backward()
    same(mine.grad[mask], theirs.grad[mask])


# --- groups ---


def trl_advantages(method, rewards, *, kl=None, beta=0.0, scale_rewards="group"):
    """The advantages of TRL's trainer for a table of rewards; ``kl`` is the log-ratio to the reference of each answer,
    put on its one token."""
    prompts, k = rewards.shape
    rows = prompts * k
    old = torch.zeros(rows, 1) if kl is None else torch.from_numpy(kl).float().reshape(rows, 1)
    model, reference = Model(old), Model(old)
    ids = [[3]] * rows
    stand_in = trainer(
        model=model,
        ref_model=reference,
        beta=beta,
        environment_factories=None,
        environments=None,
        tools=None,
        _tokenizer=SimpleNamespace(pad_token_id=0),
        pad_to_multiple_of=None,
        mask_truncated_completions=False,
        use_vllm=False,
        num_iterations=1,
        num_generations=k,
        reward_weights=torch.ones(1),
        reward_func_names=["reward"],
        reward_clip_range=None,
        normalize_advantages=False,
        multi_objective_aggregation="sum_then_normalize",
        scale_rewards=scale_rewards,
        _logs=defaultdict(list) | {"rewards": defaultdict(list), "extra": defaultdict(list)},
        _pending_extra_logs={},
        _pending_metrics={},
        _calculate_rewards=lambda *_: torch.from_numpy(rewards).float().reshape(rows, 1),
        _get_per_token_logps_and_entropies=lambda which, *_, **__: (old if which is model else 0 * old, None, None),
    )
    texts = ["a"] * rows
    if method is trl().RLOOTrainer:
        stand_in._generate = lambda _: (ids, ids, texts)
    else:
        stand_in._generate = lambda _: (ids, ids, None, texts, None, {}, None, None)
    output = method._generate_and_score_completions(stand_in, [{"prompt": "p"}] * rows)
    return output["advantages"].reshape(prompts, k).numpy()


def table(seed):
    """Rewards with an equal row, a discarded cell, and a row with a single valid cell."""
    r = np.random.default_rng(seed).normal(size=(6, 4))
    r[1], r[2, 3], r[3, :3] = 0.25, NAN, NAN
    return r


def advantages_same(ours, theirs):
    """TRL gives 0 where we say NaN: discarded."""
    np.testing.assert_allclose(np.nan_to_num(ours), theirs, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_grpo_advantages(seed):
    r = table(seed)
    complete = np.delete(r, 3, axis=0)  # TRL's deviation of a single value is NaN, which makes 0 of it: ours too
    advantages_same(grpo(complete), trl_advantages(trl().GRPOTrainer, complete))
    advantages_same(grpo(r), trl_advantages(trl().GRPOTrainer, r))
    advantages_same(dr_grpo(r), trl_advantages(trl().GRPOTrainer, r, scale_rewards="none"))


@pytest.mark.parametrize("seed", SEEDS)
def test_rloo_advantages_with_and_without_the_kl_in_the_reward(seed):
    r = table(seed)
    advantages_same(rloo(r), trl_advantages(trl().RLOOTrainer, r))
    kl = np.random.default_rng(seed + 100).normal(size=r.shape)
    ours = rloo(kl_corrected(r, kl, np.zeros_like(kl), 0.05))
    advantages_same(ours, trl_advantages(trl().RLOOTrainer, r, kl=kl, beta=0.05))


GRPO_LOSSES = [
    ("grpo", "seq_mean_token_mean"),
    ("bnpo", "token_mean"),
    ("dapo", "token_mean"),
    ("dr_grpo", "dr_grpo"),
    ("luspo", "seq_mean_token_sum"),
]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize(("loss_type", "how"), GRPO_LOSSES)
def test_grpo_losses(loss_type, how, beta, seed):
    policy, old, mask = answers(10, seed)
    reference = torch.where(mask, policy + 0.3 * torch.randn(policy.shape), 0.0)
    advantages = torch.randn(10)
    mine, theirs = policy.clone().requires_grad_(), policy.clone().requires_grad_()
    ours = clipped_objective(mine, old, advantages, mask, clip_low=0.2, clip_high=0.28, reference=reference, beta=beta)
    loss = aggregate(ours.losses, mask, how, max_length=32)

    stand_in = trainer(
        model=SimpleNamespace(training=True),
        beta=beta,
        loss_type=loss_type,
        epsilon_low=0.2,
        epsilon_high=0.28,
        importance_sampling_level="token",
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        use_vllm=False,
        vllm_importance_sampling_correction=False,
        max_completion_length=32,
        current_gradient_accumulation_steps=1,
        _entropy_bonus_enabled=False,
        _get_per_token_logps_and_entropies=lambda *_, **__: (theirs, torch.zeros_like(theirs), None),
    )
    batch = {
        "prompt_ids": torch.ones(10, 1, dtype=torch.long),
        "prompt_mask": torch.ones(10, 1, dtype=torch.long),
        "completion_ids": torch.ones(mask.shape, dtype=torch.long),
        "completion_mask": mask.long(),
        "advantages": advantages,
        "old_per_token_logps": old,
        "ref_per_token_logps": reference,
        "num_items_in_batch": mask.sum(),
    }
    expected = trl().GRPOTrainer._compute_loss(stand_in, None, batch)
    same(loss, expected)
    loss.backward()
    expected.backward()
    same(mine.grad, theirs.grad)
    assert ours.clip_fraction.item() == pytest.approx(stand_in._metrics["train"]["clip_ratio/region_mean"][0])
    assert ours.clip_fraction > 0


@pytest.mark.parametrize("seed", SEEDS)
def test_rloo_loss(seed):
    """TRL's RLOO clips the ratio of the whole answer: ours on sums, one column."""
    policy, old, mask = answers(10, seed)
    old = torch.where(mask, policy + 0.2 * (old - policy), 0.0)
    advantages, one = torch.randn(10), torch.ones(10, 1, dtype=torch.bool)
    mine, theirs = policy.clone().requires_grad_(), policy.clone().requires_grad_()
    ours = clipped_objective(sums(mine, mask)[:, None], sums(old, mask)[:, None], advantages, one)
    loss = aggregate(ours.losses, one, "seq_mean_token_sum")

    stand_in = trainer(
        model=SimpleNamespace(training=True),
        epsilon_low=0.2,
        epsilon_high=0.2,
        _get_per_token_logps_and_entropies=lambda *_, **__: (theirs, torch.zeros_like(theirs), None),
    )
    batch = {
        "prompt_ids": torch.ones(10, 1, dtype=torch.long),
        "prompt_mask": torch.ones(10, 1, dtype=torch.long),
        "completion_ids": torch.ones(mask.shape, dtype=torch.long),
        "completion_mask": mask.long(),
        "advantages": advantages,
        "old_logps": sums(old, mask),
    }
    expected = trl().RLOOTrainer._compute_loss(stand_in, None, batch)
    same(loss, expected)
    loss.backward()
    expected.backward()
    same(mine.grad, theirs.grad)
