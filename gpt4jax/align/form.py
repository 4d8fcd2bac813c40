"""How a stage trains a decoder: all of its parameters, or low-rank adapters beside frozen ones."""

import dataclasses
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from gpt4jax import model
from gpt4jax.align import lora
from gpt4jax.errors import UserError
from gpt4jax.model import parameters
from gpt4jax.model.parameters import Params
from gpt4jax.parallel import partition


@dataclasses.dataclass(frozen=True)
class Form:
    """The form in which a decoder is trained. What is trained is a tree, and `whole` makes the decoder of it.

    Attributes:
        config: the decoder.
        rank: of adapters; 0: all parameters are trained.
        scale: of adapters' product.
        targets: the matrices that have adapters.
    """

    config: model.Config
    rank: int = 0
    scale: float = 1.0
    targets: tuple[str, ...] = ()

    @classmethod
    def of(cls, options: Any, config: model.Config) -> "Form":
        """As a stage's options (`config.align`) ask for it.

        Raises:
            UserError: a rank below 0, or targets that the decoder has not.
        """
        if options.lora_rank < 0:
            raise UserError(f"lora_rank is {options.lora_rank}; at least 1, or 0 for none")
        if not options.lora_rank:
            return cls(config)
        try:
            lora.adapted(config, options.lora_targets)
        except ValueError as error:
            raise UserError(f"lora_targets: {error}") from error
        return cls(config, options.lora_rank, options.lora_alpha / options.lora_rank, tuple(options.lora_targets))

    def begin(self, base: Params, key: jax.Array) -> Any:
        """What is trained, before training."""
        return lora.init(self.config, self.rank, self.targets, key) if self.rank else base

    def whole(self, trained: Any, base: Params | None) -> Params:
        """The decoder; `base` are the parameters that training started from, which adapters need."""
        if not self.rank:
            return trained
        assert base is not None
        return lora.merged(base, trained, self.scale)

    def decay(self) -> Any:
        """Which of what is trained decays."""
        if self.rank:
            return {row.name: {"a": True, "b": True} for row in lora.adapted(self.config, self.targets)}
        return parameters.tree(self.config, lambda row: row.decay)

    def shardings(self, mesh: Mesh) -> Any:
        """How what is trained lies on a mesh."""
        if not self.rank:
            return partition.param_shardings(self.config, mesh)
        specs = lora.specs(self.config, self.targets)
        return {name: {side: NamedSharding(mesh, spec) for side, spec in pair.items()} for name, pair in specs.items()}
