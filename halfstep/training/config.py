"""The options of training: optimiser, batch, averaging, checkpoints."""

from dataclasses import dataclass, fields
from typing import Literal

from halfstep.config.validate import (
    Count,
    CountOrNone,
    NotNegative,
    Seed,
    Smoothing,
    Updates,
    Validated,
)


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(Validated):
    """Options of `TrainingConfig`; the data and the network decide those that are not given."""

    batch_size: Count | None = None
    """Samples per update, over all processes; by default an eighth of the data, from 32 to 128."""
    micro_batch_size: CountOrNone = 0
    """Samples per forward and backward of one process; 0 is its whole share."""
    learning_rate: NotNegative | None = None
    """Learning rate; another one may be given when a run goes on. By default 0.064 over the width of a U-ViT,
    from 2e-4 to 1e-3, and 3e-4 for any other network."""
    learning_rate_schedule: Literal["linear", "constant"] = "linear"
    """The rate falls to 0 within each stage, or stays."""
    warmup: Updates = 0
    """Updates over which the rate rises from 0."""
    optimiser: Literal["adamw", "adamw-8bit", "muon"] = "adamw"
    """adamw-8bit: moments in 8 bits, by torchao. muon: Muon for the matrices of linear layers, AdamW for the
    rest; fewer, slightly longer updates."""
    betas: tuple[Smoothing, Smoothing] = (0.9, 0.999)
    """AdamW's decay rates."""
    weight_decay: NotNegative = 0.0
    """Decoupled weight decay."""
    max_grad_norm: NotNegative = 1.0
    """Largest norm of the gradient; 0 is off."""
    ema: Smoothing = 0.0
    """Decay of the averaged weights that a stage ends with; 0 is off, and costs no memory."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """The network's own arithmetic (autocast); everything else is float32."""
    compile: bool = False
    """torch.compile the network."""
    save_every: Count = 500
    """Updates between checkpoints."""
    log_every: Count = 50
    """Updates between lines of metrics.jsonl, and between looks for nan."""
    seed: Seed = 0
    """All randomness is a function of it."""

    def resolved(self, batch_size: int, learning_rate: float = 3e-4) -> "TrainingConfig":
        """The optimisation, with this batch and learning rate unless they are given."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        given = {name: value for name, value in values.items() if value is not None}
        return TrainingConfig(**{"batch_size": batch_size, "learning_rate": learning_rate, **given})


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(TrainingOptions):
    """Optimisation, the same for every method.

    Raises:
        ConfigError: an option beyond its range.
    """

    batch_size: Count = 128
    """Samples per update, over all processes."""
    learning_rate: NotNegative = 3e-4
    """Learning rate; another one may be given when a run goes on."""

    def rate_at(self, update: int, updates: int, highest: float | None = None) -> float:
        """The learning rate of an update; with warm-up the first one's is 0.

        Args:
            update: from 0.
            updates: of the whole stage.
            highest: in place of `learning_rate`, which may change within a run.
        """
        highest = self.learning_rate if highest is None else highest
        rate = (
            highest
            if self.learning_rate_schedule == "constant"
            else highest * (1 - update / updates)
        )
        return rate * min(update / self.warmup, 1.0) if self.warmup else rate
