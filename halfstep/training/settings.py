"""How a stage is trained: the optimiser and its surroundings."""

from dataclasses import dataclass
from typing import Literal

from halfstep.errors import ConfigError
from halfstep.kinds import hold_to_kinds


@dataclass(frozen=True, kw_only=True)
class Training:
    """Optimisation, the same for every method."""

    batch: int = 128
    """Samples per update, over all processes."""
    micro_batch: int = 0
    """Samples per forward and backward of one process; 0 is its whole share."""
    rate: float = 3e-4
    """Learning rate."""
    rate_schedule: Literal["linear", "constant"] = "linear"
    """The rate falls to 0 within each stage, or stays."""
    warmup: int = 0
    """Updates over which the rate rises from 0."""
    optimiser: Literal["adamw", "muon"] = "adamw"
    """muon: Muon for the matrices of linear layers, AdamW for the rest; fewer, slightly longer updates."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay rates."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    clip: float = 1.0
    """Largest norm of the gradient; 0 is off."""
    ema: float = 0.0
    """Decay of the averaged weights that a stage ends with; 0 is off, and costs no memory."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """The network's own arithmetic (autocast); everything else is float32."""
    compile: bool = False
    """torch.compile the network."""
    save_every: int = 500
    """Updates between checkpoints."""
    log_every: int = 50
    """Updates between lines of metrics.jsonl, and between looks for nan."""
    seed: int = 0
    """All randomness is a function of it."""

    def __post_init__(self) -> None:
        hold_to_kinds(self)
        for name in ("batch", "save_every", "log_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("rate", "micro_batch", "warmup", "weight_decay", "clip", "seed"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} cannot be negative, got {getattr(self, name)}")
        if self.seed >= 2**32:
            raise ConfigError(
                f"seed must be below 2^32, got {self.seed}: write for example --seed 0"
            )
        if not 0 <= self.ema < 1:
            raise ConfigError(f"ema lies in [0, 1), got {self.ema:g}: write for example 0.999")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"betas lie in [0, 1), got {self.betas}: write for example 0.9 0.999")

    def rate_at(self, update: int, updates: int) -> float:
        """The learning rate of an update; with warm-up the first one's is 0."""
        rate = self.rate if self.rate_schedule == "constant" else self.rate * (1 - update / updates)
        return rate * min(update / self.warmup, 1.0) if self.warmup else rate
