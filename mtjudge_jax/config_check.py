"""What each field of a config may be; config.check() reads these."""

from mtjudge_jax.tasks.wording import TEMPLATES

CHOICES = {
    "stage": ("grpo", "sft"),
    "model.dtype": ("float32", "bfloat16"),
    "model.param_dtype": ("float32", "bfloat16"),
    "model.remat": ("none", "dots", "full"),
    "model.attention": ("auto", "xla", "chunked", "splash", "tokamax"),
    "model.experts": ("auto", "dense", "ragged", "tokamax"),
    "data.mixture": ("proportional", "uniform", "temperature", "weights", "mt_grpo"),
    "data.mt_grpo_improvement": ("objective", "reward"),
    "data.polarity": ("plain", "varied"),
    "data.label_words": ("plain", "varied"),
    "eval.templates": TEMPLATES,
    "sft.target": ("rationale", "answer"),
    "loss.advantage_std": ("unbiased", "population", "none"),
    "loss.kl_estimator": ("k1", "k2", "k3"),
    "loss.aggregation": ("token_mean", "sequence_mean"),
    "optim.name": ("adamw", "muon"),
    "optim.schedule": ("constant", "cosine"),
}
AMONG = {  # each entry of a tuple
    "model.freeze": ("vision", "mergers", "embeddings"),
    "lora.targets": ("q", "k", "v", "o", "gate", "up", "down"),
}
AT_LEAST = {
    "steps": 1,
    "rollout.prompts": 1,
    "rollout.group_size": 2,
    "rollout.completion_tokens": 2,
    "update.prompts": 1,
    "update.micro_prompts": 1,
    "data.prompt_tokens": 1,
    "data.mt_grpo_max_oversample": 1,
    "data.mt_grpo_rounds": 1,
    "model.head_chunk": 1,
    "eval.every_steps": 1,
    "eval.samples": 1,
    "checkpoint.every_steps": 1,
    "checkpoint.keep": 1,
    "update.max_skipped": 1,
    "hosts.start_seconds": 5,
    "hosts.heartbeat_seconds": 2,
    "checkpoint.max_failed_saves": 1,
    "loss.dual_clip": 1,
}
NOT_NEGATIVE = (
    "seed", "lora.rank", "data.patches", "rollout.micro_prompts", "reward.overlong_buffer", "optim.lr", "optim.warmup_steps",
    "optim.weight_decay", "eval.limit", "eval.patience", "hosts.stuck_seconds", "loss.clip_low", "loss.clip_high",
    "loss.kl_coef", "loss.advantage_eps",
)  # fmt: skip
AT_LEAST |= dict.fromkeys(NOT_NEGATIVE, 0)
SHARES = ("reward.alpha", "reward.tie_credit", "optim.final_lr_ratio", "data.max_bad_share", "loss.clip_low")
WITHIN = dict.fromkeys(SHARES, (0, 1))
BELOW_ONE = ("optim.b1", "optim.b2", "data.mt_grpo_rho_decay")
POSITIVE = ("lora.alpha", "rollout.temperature", "optim.max_grad_norm", "optim.eps")
POSITIVE += ("data.mixture_temperature", "data.mt_grpo_lambda", "data.mt_grpo_beta")
