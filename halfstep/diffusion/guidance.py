"""Denoisers with guidance: classifier-free (Ho & Salimans 2022), classifier (Dhariwal & Nichol 2021)."""

from typing import Self, TypeVar

import torch
from torch import nn, Tensor

from halfstep.batch import Cond, Null, null_values
from halfstep.config.validate import validate
from halfstep.diffusion.denoiser import Denoiser, level_of
from halfstep.diffusion.prediction import Parameterisation, Prediction
from halfstep.diffusion.schedules import Schedule
from halfstep.errors import ConfigError

S = TypeVar("S", float, float | Tensor)


def _scale(scale: S) -> S:
    """A guidance scale, or one per sample; `ConfigError` unless all are finite."""
    for value in [scale] if not isinstance(scale, Tensor) else [float(scale.abs().sum())]:
        validate("scale", value, float)
    return scale


class _GuidedDenoiser(nn.Module):
    """A denoiser with guidance around it; schedule and parameterisation are the denoiser's."""

    denoiser: Denoiser

    @property
    def schedule(self) -> Schedule:
        return self.denoiser.schedule

    @property
    def parameterisation(self) -> Parameterisation:
        return self.denoiser.parameterisation

    @property
    def unguided(self) -> Denoiser:
        """The denoiser inside."""
        return self.denoiser

    def trainable_copy(self) -> Denoiser:
        """A trainable copy of the denoiser inside, from which a student starts."""
        return self.denoiser.trainable_copy()

    def freeze(self) -> Self:
        """Switch to evaluation mode and freeze the denoiser, in place; returns itself.

        A classifier's parameters are the caller's and stay as they are: gradients are taken of x alone.
        """
        self.denoiser.freeze()
        return self.eval()


class Guided(_GuidedDenoiser):
    """A denoiser with classifier-free guidance (Ho & Salimans 2022): both branches in one batched forward.

    x0 = x0(null) + scale (x0(cond) - x0(null)), and eps likewise.

    Args:
        denoiser: the denoiser that is guided.
        scale: 1 is no guidance, as in diffusers; the w of Ho & Salimans and of Meng et al. is scale - 1.
            A float, or float [B] for one scale per sample. At scale 1 the null branch is not evaluated.
        null: the null label; the states of the empty text, float [tokens, D]; or a `Cond` of one row, or
            one a sample.
        norm: side of the patches on which the guided output is scaled to the conditional one's norm, as
            the pipeline of Qwen-Image does; 0 leaves it.

    Raises:
        ConfigError: a scale that is not finite; or a call without the condition that guidance needs.
    """

    def __init__(self, denoiser: Denoiser, scale: float | Tensor, null: Null, *, norm: int = 0):
        super().__init__()
        self.denoiser, self.scale, self.null, self.norm = denoiser, _scale(scale), null, norm

    @property
    def guided(self) -> bool:
        """Whether its predictions are others than the denoiser's."""
        return isinstance(self.scale, Tensor) or self.scale != 1

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        if not isinstance(self.scale, Tensor) and self.scale == 1:
            plain: Prediction = self.denoiser(x_t, t, cond)
            return plain
        if cond is None or not cond.can_drop(self.null):
            name = next(iter(null_values(self.null)), "label")
            words = {"label": "labels", "encoder_hidden_states": "texts"}
            raise ConfigError(
                f"guidance needs {words.get(name, name)}: give cond=Cond({name}=...), or scale=1 without"
            )
        both: Prediction = self.denoiser(
            torch.cat([x_t, x_t]), t.repeat(2), cond.cat(cond.dropped(self.null))
        )
        (x0_label, x0_null), (eps_label, eps_null) = both.x0.chunk(2), both.eps.chunk(2)
        label, null = Prediction(x0_label, eps_label), Prediction(x0_null, eps_null)
        return self.combined(null, label, x_t, t)

    def combined(self, null: Prediction, label: Prediction, x_t: Tensor, t: Tensor) -> Prediction:
        """The guided prediction of these two at x_t.

        Args:
            null: the prediction without the condition.
            label: the prediction with it.
            x_t: float [B, ...], noisy data.
            t: float [B], times in [0, 1].
        """
        scale = self.scale
        if isinstance(scale, Tensor):
            scale = scale.reshape(-1, *[1] * (x_t.ndim - 1)).to(x_t.dtype)
        guided = null.toward(label, scale)
        return self._scaled(guided, label, x_t, t) if self.norm else guided

    def _scaled(self, guided: Prediction, label: Prediction, x_t: Tensor, t: Tensor) -> Prediction:
        """The guided prediction, its output scaled on each patch to the norm of the conditional one's."""
        reads, level = self.parameterisation, level_of(self.schedule, t, x_t)
        out, conditional = reads.encode(guided, level), reads.encode(label, level)
        factor = _patch_norms(conditional, self.norm) / _patch_norms(out, self.norm)
        return reads.decode(out * factor, x_t, level)


def _patch_norms(x: Tensor, side: int) -> Tensor:
    """The norm of each patch of x [B, C, H, W] over its channels and pixels, [B, 1, H, W]."""
    b, _, h, w = x.shape
    patches = x.square().sum(1).reshape(b, h // side, side, w // side, side)
    norms = patches.sum((2, 4), keepdim=True).sqrt().expand(-1, -1, side, -1, side)
    return norms.reshape(b, 1, h, w)


class ClassifierGuided(_GuidedDenoiser):
    """A denoiser pushed towards a class by a classifier of noisy images: classifier guidance.

    Dhariwal & Nichol 2021, Algorithm 2: eps - scale * sigma * grad_x log p(label | x_t).

    Args:
        denoiser: the denoiser that is guided.
        classifier: called as classifier(x_t, t), with x_t float [B, ...] and t float [B]; returns logits
            [B, classes].
        scale: 0 is no guidance.

    Raises:
        ConfigError: a scale that is not finite; a call without labels, or where alpha = 0; logits without
            a gradient.
    """

    def __init__(self, denoiser: Denoiser, classifier: nn.Module, scale: float):
        super().__init__()
        self.denoiser, self.classifier, self.scale = denoiser, classifier, _scale(scale)

    @property
    def guided(self) -> bool:
        """Whether its predictions are others than the denoiser's."""
        return self.scale != 0

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        if cond is None or cond.label is None:
            raise ConfigError("classifier guidance needs labels: give cond=Cond(label=...)")
        pred: Prediction = self.denoiser(x_t, t, cond)
        gradient = self._gradient(x_t, t, cond.label)
        level = level_of(self.schedule, t, x_t)
        return Prediction.from_eps(pred.eps - self.scale * level.sigma * gradient, x_t, level)

    def _gradient(self, x_t: Tensor, t: Tensor, label: Tensor) -> Tensor:
        """grad_x log p(label | x_t), whether or not the caller takes gradients."""
        with torch.inference_mode(False), torch.enable_grad():
            # Tensors made in inference mode never have gradients: copies do.
            x, t, label = (v.clone() if v.is_inference() else v for v in (x_t, t, label))
            x = x.detach().requires_grad_(True)
            tensors = {
                **dict(self.classifier.named_parameters()),
                **dict(self.classifier.named_buffers()),
            }
            copies = {
                name: value.clone() for name, value in tensors.items() if value.is_inference()
            }
            if copies:
                logits: Tensor = torch.func.functional_call(self.classifier, copies, (x, t))
            else:
                logits = self.classifier(x, t)
            log_p = logits.log_softmax(-1).gather(1, label[:, None])
            if not log_p.requires_grad:
                raise ConfigError(
                    "classifier guidance needs the gradient of the classifier's logits, and these have none: "
                    "leave no_grad, inference_mode and detach out of its forward"
                )
            (gradient,) = torch.autograd.grad(log_p.sum(), x)
        return gradient
