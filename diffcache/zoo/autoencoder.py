"""A block-PCA autoencoder with the interface of diffusers' Wan VAE (videos) or AutoencoderKL (pictures).

Training a VAE is not worth it at 48 x 64 pixels. An orthonormal transform of 2-frame x 8 x 8-pixel blocks, fitted in
closed form (PCA) on training frames and truncated to its strongest components, keeps nearly everything that can be
seen, and its latents are narrow enough for a small transformer: the velocity of a rectified flow contains white noise
and so must pass through the hidden width whole, which is why the number of channels per token must stay well below it.
"""

from __future__ import annotations

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin


class PointDistribution:
    """A distribution at one point: the transform is deterministic, so ``sample`` and ``mode`` agree."""

    def __init__(self, mean: torch.Tensor):
        self.mean = self.parameters = mean

    def mode(self) -> torch.Tensor:
        return self.mean

    def sample(self, generator: torch.Generator | None = None) -> torch.Tensor:
        return self.mean


class AutoencoderBlockPCA(ModelMixin, ConfigMixin):
    """Orthonormal transform of ``scale_factor_temporal`` x 8 x 8 blocks, truncated to ``z_dim`` components.

    Pixels are (B, C, T, H, W) in [-1, 1]; latents are (B, z_dim, T', H/8, W/8). With ``causal`` (Wan's convention)
    T = 1 + 2k frames become T' = 1 + k latent frames, the first one being the first frame repeated; otherwise T = 2k
    frames become T' = k.

    As with Wan, latents leave `encode` raw; a pipeline subtracts ``latents_mean`` and divides by ``latents_std``
    (`normalize` and `denormalize` do that). ``latents_std`` is a compressed spread, so weak components keep less than
    unit variance and weigh less in a training loss.

    Raises ``ValueError`` if the number of frames, the height or the width does not divide into blocks.
    """

    config_name = "config.json"

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        z_dim: int = 64,
        scale_factor_temporal: int = 2,
        scale_factor_spatial: int = 8,
        causal: bool = True,
        latents_mean: list[float] | None = None,
        latents_std: list[float] | None = None,
    ):
        super().__init__()
        size = in_channels * scale_factor_temporal * scale_factor_spatial**2
        self.register_buffer("basis", torch.eye(size)[:z_dim].clone())
        self.register_buffer("center", torch.zeros(size))
        # diffusers reads these lists from the config, so the defaults must be written back into it.
        self.register_to_config(latents_mean=list(latents_mean or [0.0] * z_dim))
        self.register_to_config(latents_std=list(latents_std or [1.0] * z_dim))

    @classmethod
    def fit(cls, blocks: torch.Tensor, z_dim: int, power: float = 0.7, **config) -> AutoencoderBlockPCA:
        """Fit to block vectors (N, C·t·s·s) from `blocks`; ``latents_std`` = std ** ``power``, rescaled to unit mean
        variance of the normalised latents."""
        blocks = blocks.double()
        center = blocks.mean(0)
        values, vectors = torch.linalg.eigh(torch.cov((blocks - center).T))
        std = values.flip(0)[:z_dim].clamp_min(1e-12).sqrt()
        scale = std**power
        scale = scale * (std / scale).square().mean().sqrt()
        model = cls(z_dim=z_dim, latents_std=[round(float(s), 6) for s in scale], **config)
        model.basis.copy_(vectors.flip(1).T[:z_dim].float())
        model.center.copy_(center.float())
        return model

    def blocks(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, T, H, W) pixels to (B, C·t·s·s, T/t, H/s, W/s) block vectors."""
        t, s = self.config.scale_factor_temporal, self.config.scale_factor_spatial
        batch, channels, frames, height, width = x.shape
        if frames % t or height % s or width % s:
            size = f"{frames} frames of {height} x {width} pixels"
            raise ValueError(f"{size} do not divide into blocks of {t} x {s} x {s}")
        x = x.reshape(batch, channels, frames // t, t, height // s, s, width // s, s)
        return x.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(1, 4)

    def unblocks(self, x: torch.Tensor) -> torch.Tensor:
        """The inverse of `blocks`."""
        t, s = self.config.scale_factor_temporal, self.config.scale_factor_spatial
        batch, _, frames, height, width = x.shape
        x = x.reshape(batch, self.config.in_channels, t, s, s, frames, height, width)
        return x.permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(batch, -1, frames * t, height * s, width * s)

    def encode(self, x: torch.Tensor, return_dict: bool = True) -> AutoencoderKLOutput | tuple[PointDistribution]:
        """Pixels (B, C, T, H, W) in [-1, 1] to raw latents, as ``.latent_dist.mode()``."""
        if self.config.causal:
            if x.shape[2] % self.config.scale_factor_temporal != 1:
                raise ValueError(f"a causal autoencoder takes 1 + 2k frames, got {x.shape[2]}")
            x = torch.cat([x[:, :, :1].repeat(1, 1, self.config.scale_factor_temporal - 1, 1, 1), x], 2)
        z = torch.einsum("zp,bpthw->bzthw", self.basis, self.blocks(x) - self.center.view(1, -1, 1, 1, 1))
        posterior = PointDistribution(z)
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    def decode(self, z: torch.Tensor, return_dict: bool = True) -> DecoderOutput | tuple[torch.Tensor]:
        """Raw latents to pixels, clamped to [-1, 1]."""
        blocks = torch.einsum("zp,bzthw->bpthw", self.basis, z) + self.center.view(1, -1, 1, 1, 1)
        x = self.unblocks(blocks).clamp(-1, 1)
        if self.config.causal:
            x = x[:, :, self.config.scale_factor_temporal - 1 :]
        return DecoderOutput(sample=x) if return_dict else (x,)

    def _statistic(self, name: str, like: torch.Tensor) -> torch.Tensor:
        return torch.tensor(self.config[name], device=like.device, dtype=like.dtype).view(1, -1, 1, 1, 1)

    def normalize(self, z: torch.Tensor) -> torch.Tensor:
        """Raw latents to the scale a denoiser sees."""
        return (z - self._statistic("latents_mean", z)) / self._statistic("latents_std", z)

    def denormalize(self, z: torch.Tensor) -> torch.Tensor:
        """The inverse of `normalize`."""
        return z * self._statistic("latents_std", z) + self._statistic("latents_mean", z)


class AutoencoderImagePCA(AutoencoderBlockPCA):
    """The same for pictures (B, C, H, W), as ``DiTPipeline`` expects it.

    That pipeline knows nothing but ``scaling_factor``, so latents are normalised here: `encode` gives and `decode`
    takes (B, z_dim, H/8, W/8) of unit mean variance.
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        z_dim: int = 48,
        scale_factor_temporal: int = 1,
        scale_factor_spatial: int = 8,
        causal: bool = False,
        scaling_factor: float = 1.0,
        latents_mean: list[float] | None = None,
        latents_std: list[float] | None = None,
    ):
        super().__init__(
            in_channels, z_dim, scale_factor_temporal, scale_factor_spatial, causal, latents_mean, latents_std
        )

    def encode(self, x: torch.Tensor, return_dict: bool = True) -> AutoencoderKLOutput | tuple[PointDistribution]:
        """Pixels (B, C, H, W) in [-1, 1] to normalised latents, as ``.latent_dist.mode()``."""
        z = super().encode(x[:, :, None]).latent_dist.mode()
        posterior = PointDistribution(self.normalize(z)[:, :, 0])
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    def decode(self, z: torch.Tensor, return_dict: bool = True) -> DecoderOutput | tuple[torch.Tensor]:
        """Normalised latents to pixels, clamped to [-1, 1]."""
        x = super().decode(self.denormalize(z[:, :, None])).sample[:, :, 0]
        return DecoderOutput(sample=x) if return_dict else (x,)
