"""The shape of an image frontend: what stands between pixels and the decoder's tokens."""

import dataclasses
import numbers

FRONTENDS = ("linear", "vit", "resampler")
ACTIVATIONS = ("gelu", "quick_gelu")


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """An image frontend by its sizes and choices. What each field means stands in `gpt4jax/config.py`.

    Raises:
        ValueError: a choice that does not exist or sizes that do not fit together.
    """

    frontend: str
    image_token: int
    patch_size: int = 16
    max_patches: int = 256
    num_layers: int = 12
    embed_dim: int = 768
    num_heads: int = 12
    mlp_dim: int = 3072
    activation: str = "gelu"
    class_token: bool = False
    resampler_layers: int = 2
    resampler_len: int = 64
    frozen: bool = False
    clip_dim: int = 0
    patch_norm: bool = True

    def __post_init__(self) -> None:
        if self.frontend not in FRONTENDS:
            raise ValueError(f"vision.frontend is {self.frontend!r}; it must be none or one of {', '.join(FRONTENDS)}")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"vision.activation is {self.activation!r}; it must be one of {', '.join(ACTIVATIONS)}")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is int:
                least = 0 if field.name in ("image_token", "resampler_layers", "clip_dim") else 1
                whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
                if not whole or value < least:
                    raise ValueError(f"vision.{field.name} is {value!r}; it must be a whole number, at least {least}")
            elif field.type is bool and not isinstance(value, bool):
                raise ValueError(f"vision.{field.name} is {value!r}; it must be true or false")
        if self.encoder and self.embed_dim % self.num_heads:
            raise ValueError(f"vision.embed_dim {self.embed_dim} is not a multiple of num_heads {self.num_heads}")
        if self.frozen and not self.encoder:
            raise ValueError("vision.frozen keeps a ViT as it is, and vision.frontend 'linear' has none")
        if self.clip_dim and not self.class_token:
            raise ValueError(f"vision.clip_dim {self.clip_dim} compares class tokens: it needs vision.class_token=True")
        if self.frontend != "vit" and self.class_token:
            raise ValueError(f"vision.class_token is that of a vit; vision.frontend is {self.frontend!r}")

    @property
    def encoder(self) -> bool:
        """Whether there is a ViT."""
        return self.frontend != "linear"

    @property
    def channels(self) -> int:
        """Values of a patch: its pixels' red, green and blue."""
        return 3 * self.patch_size**2

    @property
    def longest(self) -> int:
        """The most tokens that an image is in the decoder."""
        return self.resampler_len if self.frontend == "resampler" else self.max_patches

    def image_len(self, patches: int) -> int:
        """How many tokens an image of so many patches is in the decoder."""
        return self.resampler_len if self.frontend == "resampler" else patches
