"""U-ViT: a plain transformer with the long skips of a U-Net, and time and label as tokens.

Bao et al., "All are Worth Words: A ViT Backbone for Diffusion Models", CVPR 2023.  Parameters have
the names and shapes of the official implementation, so its weights load as they are.
"""

from collections.abc import Sequence

import torch
from torch import nn, Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from halfstep.errors import ConfigError
from halfstep.nets.sinusoid import sinusoid


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, qkv_bias: bool, qk_scale: float | None):
        super().__init__()
        self.heads, self.scale = heads, qk_scale
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(
            q, k, v, scale=self.scale
        )  #          [B, heads, N, d]
        out: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return out


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class Block(nn.Module):
    """Pre-norm transformer block; with `skip` it first merges [x, skip] by a linear layer."""

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_ratio: float,
        qkv_bias: bool,
        qk_scale: float | None,
        skip: bool = False,
    ):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(width, heads, qkv_bias, qk_scale)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.skip_linear = nn.Linear(2 * width, width) if skip else None

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        if self.skip_linear is not None:
            assert skip is not None, "a block with a skip layer is given one by UViT.forward"
            x = self.skip_linear(torch.cat([x, skip], dim=-1))
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class PatchEmbed(nn.Module):
    def __init__(self, patch: int, channels: int, width: int):
        super().__init__()
        self.proj = nn.Conv2d(channels, width, kernel_size=patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.proj(x).flatten(2).transpose(1, 2)
        return out


class UViT(nn.Module):
    """Maps (x [B, C, H, W], timesteps [B], y int64 [B] or None) to [B, out_chans, H, W].

    The arguments are the official ones.  `norm_layer` is not among them: it is a callable and
    cannot be written to a file.  Two go further: `img_size` may be (H, W), and `out_chans` is the
    number of channels out (in_chans where None).

    patch_size      side of the patches; divides img_size
    depth           blocks beside the middle one, even: depth / 2 before it, depth / 2 after it
    qk_scale        factor on the attention logits (head_dim^-0.5 where None)
    mlp_time_embed  two linear layers on the time token
    num_classes     rows of the label embedding; the last is the null class of a network trained
                    with label dropping.  -1: no labels
    use_checkpoint  recompute each block in the backward pass: less memory, a third more work
    conv            a final 3x3 convolution
    skip            the long skips
    """

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
    ):
        given = dict(locals())
        super().__init__()
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        _refuse(height, width, patch_size, embed_dim, depth, num_heads)
        self.config = {key: given[key] for key in given if key not in ("self", "__class__")}
        self.shape = in_chans, height, width
        self.patch, self.width, self.use_checkpoint = patch_size, embed_dim, use_checkpoint
        self.num_classes, self.extras = num_classes, 2 if num_classes > 0 else 1
        tokens = self.extras + (height // patch_size) * (width // patch_size)
        out = in_chans if out_chans is None else out_chans

        def block(skip: bool = False) -> Block:
            return Block(embed_dim, num_heads, mlp_ratio, qkv_bias, qk_scale, skip)

        self.patch_embed = PatchEmbed(patch_size, in_chans, embed_dim)
        self.label_emb = nn.Embedding(num_classes, embed_dim) if num_classes > 0 else None
        self.time_embed = _time_mlp(embed_dim) if mlp_time_embed else nn.Identity()
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, embed_dim))
        self.in_blocks = nn.ModuleList(block() for _ in range(depth // 2))
        self.mid_block = block()
        self.out_blocks = nn.ModuleList(block(skip) for _ in range(depth // 2))
        self.norm = nn.LayerNorm(embed_dim)
        self.decoder_pred = nn.Linear(embed_dim, patch_size**2 * out)
        self.final_layer = nn.Conv2d(out, out, 3, padding=1) if conv else nn.Identity()

        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.apply(_init)

    def forward(self, x: Tensor, timesteps: Tensor, y: Tensor | None = None) -> Tensor:
        self._check(x, timesteps, y)
        # The weights' own dtype, and not the patches': under autocast the time keeps float32.
        sines = sinusoid(timesteps, self.width).to(self.pos_embed.dtype)
        tokens = [self.time_embed(sines)[:, None], self.patch_embed(x)]
        if self.label_emb is not None:
            tokens.insert(0, self.label_emb(y)[:, None])
        h = torch.cat(tokens, dim=1) + self.pos_embed

        skips: list[Tensor] = []
        for block in self.in_blocks:
            h = self._run(block, h)
            skips.append(h)
        h = self._run(self.mid_block, h)
        for block in self.out_blocks:
            h = self._run(block, h, skips.pop())

        # Only the patches are read out: the norm and the head see each token alone.
        return self._image(self.decoder_pred(self.norm(h[:, self.extras :])))

    def _run(self, block: nn.Module, h: Tensor, skip: Tensor | None = None) -> Tensor:
        if self.use_checkpoint and torch.is_grad_enabled():
            saved: Tensor = checkpoint(block, h, skip, use_reentrant=False)
            return saved
        out: Tensor = block(h, skip)
        return out

    def _image(self, patches: Tensor) -> Tensor:
        """[B, N, p * p * C] to [B, C, H, W]; within a patch the channel runs fastest."""
        p, (_, height, width) = self.patch, self.shape
        rows = patches.reshape(len(patches), height // p, width // p, p, p, -1)
        image: Tensor = self.final_layer(
            rows.permute(0, 5, 1, 3, 2, 4).reshape(len(patches), -1, height, width)
        )
        return image

    def _check(self, x: Tensor, timesteps: Tensor, y: Tensor | None) -> None:
        if x.ndim != 4 or tuple(x.shape[1:]) != self.shape:
            raise ConfigError(
                f"this U-ViT was built for images of shape {list(self.shape)} and got "
                f"{list(x.shape[1:])}: give it that shape, or build one with the other img_size "
                "and in_chans (its position embedding has one size)"
            )
        if timesteps.shape != x.shape[:1]:
            raise ConfigError(
                f"timesteps must have one time per sample: expected shape [{len(x)}], got "
                f"{list(timesteps.shape)}"
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


def _refuse(height: int, width: int, patch: int, embed_dim: int, depth: int, heads: int) -> None:
    if height % patch or width % patch:
        raise ConfigError(
            f"an image of {height} x {width} cannot be cut into patches of {patch} x {patch}: "
            "choose img_size as a multiple of patch_size"
        )
    if depth % 2:
        raise ConfigError(
            f"depth {depth} is odd, and a U-ViT has as many blocks before its middle block as "
            f"after it: write depth={depth - 1} ({depth} blocks in all) or depth={depth + 1} "
            f"({depth + 2} blocks)"
        )
    if embed_dim % heads:
        raise ConfigError(
            f"embed_dim {embed_dim} cannot be split among {heads} heads: choose num_heads that "
            "divides it"
        )


def _time_mlp(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width))


def _init(module: nn.Module) -> None:
    """The official initialisation; embeddings and convolutions keep PyTorch's."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
