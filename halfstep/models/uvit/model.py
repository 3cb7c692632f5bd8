"""U-ViT: a transformer with a U-Net's long skips, and time, label or text as tokens.

Bao et al., "All are Worth Words: A ViT Backbone for Diffusion Models", CVPR 2023.  Parameters have
the names and shapes of the official implementation, so its weights load unchanged.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn, Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from halfstep.diffusion.denoiser import freeze_alike
from halfstep.errors import ConfigError
from halfstep.models.end_time_embedding import EndTimeEmbedding
from halfstep.models.guidance_embedding import check_scales, GuidanceEmbedding
from halfstep.models.head_bank import HeadBank, last_output
from halfstep.models.time_embedding import sinusoid
from halfstep.models.uvit.attention import Attention, Block
from halfstep.models.uvit.checks import refuse_conditions, refuse_sides
from halfstep.quiet import quietly

with quietly():  # from their own modules: diffusers' front door takes longer to open
    from diffusers.configuration_utils import ConfigMixin, register_to_config
    from diffusers.models.modeling_utils import ModelMixin
    from diffusers.utils.outputs import BaseOutput


class PatchEmbed(nn.Module):
    def __init__(self, patch: int, channels: int, width: int):
        super().__init__()
        self.proj = nn.Conv2d(channels, width, kernel_size=patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.proj(x).flatten(2).transpose(1, 2)
        return out


@dataclass
class UViTOutput(BaseOutput):
    """The output for diffusers' pipelines: `sample`, [B, out_chans, H, W]."""

    sample: Tensor


class UViT(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """A U-ViT as a model of diffusers, with the official arguments.

    Maps (x [B, C, H, W], timesteps, y int64 [B], encoder_hidden_states [B, tokens, clip_dim]) to
    [B, out_chans, H, W]; y and encoder_hidden_states only if it was built for them.  The official argument
    `norm_layer` is missing: a callable cannot be written to a file.  `img_size` may also be (H, W).

    patch_size      side of the patches; divides img_size
    depth           blocks without the middle one, even: depth / 2 before it, depth / 2 after it
    qk_scale        factor on the attention logits (head_dim^-0.5 where None)
    mlp_time_embed  two linear layers on the time token
    num_classes     rows of the label embedding; with label dropping in training the last is the null
                    class.  -1: no labels
    use_checkpoint  recompute each block in the backward pass: less memory, a third more work; the
                    same as calling enable_gradient_checkpointing()
    conv            a final 3x3 convolution
    skip            the long skips
    out_chans       channels out (in_chans where None)
    clip_dim        width of its text states.  None: no text
    num_clip_token  text states of a sample
    attention       'auto', 'sdpa', 'explicit' or 'xformers': see `halfstep.models.uvit.attention.auto`
    guidance_embed_dim  features of the guidance scale, added to the time token; 0: it takes none
    output_heads    copies of decoder_pred, whose weights in the output are `heads`; 0: one, without weights
    t_end_embed_dim     features of the time where a step ends, added to the time token; 0: it is not told
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["Block"]  # type: ignore[assignment]  # noqa: RUF012  # None in diffusers
    _repeated_blocks = ["Block"]  # noqa: RUF012

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        img_size: int | Sequence[int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = False,
        qk_scale: float | None = None,
        mlp_time_embed: bool = False,
        num_classes: int = -1,
        use_checkpoint: bool = False,
        conv: bool = True,
        skip: bool = True,
        out_chans: int | None = None,
        clip_dim: int | None = None,
        num_clip_token: int = 77,
        attention: str = "auto",
        guidance_embed_dim: int = 0,
        output_heads: int = 0,
        t_end_embed_dim: int = 0,
    ):
        super().__init__()  # type: ignore[no-untyped-call]
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        refuse_sides(height, width, patch_size, embed_dim, depth, num_heads)
        refuse_conditions(num_classes, clip_dim, num_clip_token)
        self.shape, self.patch, self.width = (in_chans, height, width), patch_size, embed_dim
        self.num_classes, self.texts = num_classes, (num_clip_token, clip_dim)
        conditions = num_clip_token if clip_dim is not None else int(num_classes > 0)
        self.extras, self.grid = 1 + conditions, (height // patch_size, width // patch_size)
        tokens = self.extras + self.grid[0] * self.grid[1]
        out = in_chans if out_chans is None else out_chans

        def block(skip: bool = False) -> Block:
            mixing = Attention(
                embed_dim, num_heads, qkv_bias=qkv_bias, qk_scale=qk_scale, form=attention
            )
            return Block(embed_dim, int(embed_dim * mlp_ratio), mixing, skip)

        self.patch_embed = PatchEmbed(patch_size, in_chans, embed_dim)
        self.label_emb = nn.Embedding(num_classes, embed_dim) if num_classes > 0 else None
        self.context_embed = None if clip_dim is None else nn.Linear(clip_dim, embed_dim)
        self.time_embed = _time_mlp(embed_dim) if mlp_time_embed else nn.Identity()
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, embed_dim))
        self.in_blocks = nn.ModuleList(block() for _ in range(depth // 2))
        self.mid_block = block()
        self.out_blocks = nn.ModuleList(block(skip) for _ in range(depth // 2))
        self.norm = nn.LayerNorm(embed_dim)
        self.decoder_pred: nn.Module = nn.Linear(embed_dim, patch_size**2 * out)
        self.final_layer = nn.Conv2d(out, out, 3, padding=1) if conv else nn.Identity()

        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.apply(_init)
        self.guidance_embed = (
            GuidanceEmbedding(guidance_embed_dim, embed_dim) if guidance_embed_dim else None
        )
        self.output_heads = output_heads
        if output_heads:
            self.decoder_pred = HeadBank(self.decoder_pred, output_heads)
        self.t_end_embed = EndTimeEmbedding(t_end_embed_dim, embed_dim) if t_end_embed_dim else None
        self.gradient_checkpointing = use_checkpoint  # diffusers' switch sets both of these
        self._gradient_checkpointing_func = _recomputed

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor | float,
        y: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        guidance_scale: Tensor | None = None,
        heads: Tensor | None = None,
        t_end: Tensor | None = None,
        *,
        return_dict: bool = False,
    ) -> Tensor | UViTOutput:
        """The output as a tensor, as the official one; as `UViTOutput` with return_dict=True.

        timesteps       one time a sample, [B], or one for all
        guidance_scale  one scale a sample, [B], if it was built for it
        heads           the weights of its heads, [B, N] or [B, M, N], if it was built with some
        t_end           one time a sample, [B], where its step ends, if it was built for it
        """
        self._check(x, y, encoder_hidden_states)
        if guidance_scale is not None and self.guidance_embed is None:
            raise ConfigError(
                "this U-ViT takes no guidance scale and got some: leave it out, or build it with guidance"
            )
        check_scales(guidance_scale, x)
        if t_end is not None and self.t_end_embed is None:
            raise ConfigError(
                "this U-ViT is not told where its step ends and got t_end: leave it out, or build it with "
                "t_end_embed_dim"
            )
        # The weights' own dtype, and not the patches': under autocast the time keeps float32.
        sines = sinusoid(_times(timesteps, x), self.width).to(self.pos_embed.dtype)
        time = self.time_embed(sines)
        if self.guidance_embed is not None:
            time = time + self.guidance_embed(guidance_scale)
        if self.t_end_embed is not None:
            time = time + self.t_end_embed(t_end)
        tokens = [time[:, None], self.patch_embed(x)]
        if self.label_emb is not None:
            tokens.insert(0, self.label_emb(y)[:, None])
        if self.context_embed is not None and encoder_hidden_states is not None:
            tokens.insert(
                1, self.context_embed(encoder_hidden_states.to(self.context_embed.weight.dtype))
            )
        h = torch.cat(tokens, dim=1) + self.pos_embed

        skips: list[Tensor] = []
        for block in self.in_blocks:
            h = self._run(block, h)
            skips.append(h)
        h = self._run(self.mid_block, h)
        for block in self.out_blocks:
            h = self._run(block, h, skips.pop())

        # Only the patches are read out: the norm and the head see each token alone.
        image = self._image(last_output(self.decoder_pred, self.norm(h[:, self.extras :]), heads))
        return UViTOutput(sample=image) if return_dict else image

    def resized(self, img_size: int | Sequence[int]) -> "UViT":
        """A copy for images of another size: a side, or (H, W).

        The position embedding of the patches is interpolated, bicubic on their grid (Dosovitskiy et
        al. 2021, section 3.2); the other tokens keep theirs.  The copy needs some training at the new size
        to be as good there.
        """
        config = {key: value for key, value in self.config.items() if not key.startswith("_")}
        with torch.device("meta"):
            other: UViT = type(self)(**config | {"img_size": img_size})
        state = {name: value.detach().clone() for name, value in self.state_dict().items()}
        if other.grid != self.grid:
            embedding = state["pos_embed"]
            patches = _resampled(embedding[:, self.extras :], self.grid, other.grid)
            state["pos_embed"] = torch.cat([embedding[:, : self.extras], patches], dim=1)
        other.load_state_dict(state, assign=True)
        freeze_alike(other, self)
        other.gradient_checkpointing = self.gradient_checkpointing
        other.train(self.training)
        return other

    def _run(self, block: nn.Module, h: Tensor, skip: Tensor | None = None) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            recomputed: Any = self._gradient_checkpointing_func
            return recomputed(block, h, skip)  # type: ignore[no-any-return]
        out: Tensor = block(h, skip)
        return out

    def _image(self, patches: Tensor) -> Tensor:
        """[B, N, p * p * C] to [B, C, H, W]; within a patch the channel runs fastest."""
        cells = patches.unflatten(2, (self.patch, self.patch, -1)).unflatten(1, self.grid)
        rows = cells.permute(0, 5, 1, 3, 2, 4)  # [B, C, grid rows, p, grid columns, p]
        image: Tensor = self.final_layer(rows.flatten(4, 5).flatten(2, 3))
        return image

    def _check(self, x: Tensor, y: Tensor | None, encoder_hidden_states: Tensor | None) -> None:
        if x.ndim != 4 or tuple(x.shape[1:]) != self.shape:
            raise ConfigError(
                f"this U-ViT was built for images of shape {list(self.shape)} and got "
                f"{list(x.shape[1:])}: give it that shape, or a copy for other images by "
                "resized(img_size) (its position embedding has one size)"
            )
        if y is None and self.label_emb is not None:
            raise ConfigError(
                f"this U-ViT has {self.num_classes} classes and got no labels: give y, or build it "
                "without num_classes"
            )
        if y is not None and self.label_emb is None:
            raise ConfigError(
                "this U-ViT has no classes and got labels: leave them out, or build it with "
                "num_classes"
            )
        if y is not None and y.shape != x.shape[:1]:
            raise ConfigError(
                f"y must have one label per sample: expected shape [{len(x)}], got {list(y.shape)}"
            )
        if encoder_hidden_states is not None and self.context_embed is None:
            raise ConfigError(
                "this U-ViT reads no text and got encoder_hidden_states: leave it out, or build it with "
                "clip_dim"
            )
        expected = [x.shape[0], *self.texts]
        actual = None if encoder_hidden_states is None else list(encoder_hidden_states.shape)
        if self.context_embed is not None and actual != expected:
            raise ConfigError(
                f"this U-ViT reads text states of shape {expected} and got shape {actual}: give "
                "encoder_hidden_states of that shape, or build it with other clip_dim and num_clip_token"
            )


def _times(timesteps: Tensor | float, x: Tensor) -> Tensor:
    """One time a sample, [B]."""
    if not isinstance(timesteps, Tensor):
        return torch.full((len(x),), timesteps, dtype=torch.float32, device=x.device)
    if timesteps.ndim and timesteps.shape != x.shape[:1]:
        raise ConfigError(
            f"timesteps must have one time per sample, or be one for all: expected shape "
            f"[{len(x)}], got {list(timesteps.shape)}"
        )
    # x.shape[0], as len(x) would fix the batch of a traced network.
    return timesteps.to(x.device).expand(x.shape[0])


def _resampled(embedding: Tensor, grid: tuple[int, int], to: tuple[int, int]) -> Tensor:
    """Interpolate a position embedding [1, h w, D] from one grid to another."""
    rows = embedding.unflatten(1, grid).permute(0, 3, 1, 2)
    # Antialiased: the kernel preserves a parabola exactly, and smooths where the grid shrinks.
    # It needs float32 at least.
    wide = rows.to(torch.promote_types(embedding.dtype, torch.float32))
    resampled = F.interpolate(wide, to, mode="bicubic", antialias=True)
    return resampled.to(embedding.dtype).flatten(2).transpose(1, 2)


def _recomputed(block: nn.Module, *inputs: Tensor | None) -> Tensor:
    out: Tensor = checkpoint(block, *inputs, use_reentrant=False)
    return out


def _time_mlp(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width))


def _init(module: nn.Module) -> None:
    """The official initialisation; embeddings and convolutions keep PyTorch's."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
