"""lm-evaluation-harness on our models: its `LM` interface over an engine.

    import gpt4jax.evals.lm_eval_model          # registers the name "gpt4jax"
    lm_eval.simple_evaluate(model="gpt4jax", model_args="weights=smollm2-135m-instruct", tasks=["piqa"])

The harness is no dependency of ours: `pip install lm-eval`.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

from gpt4jax import weights as weight_files
from gpt4jax.evals.asking import Asker, TooLong
from gpt4jax.evals.calls import Choose, Chosen, Generate, Generated
from gpt4jax.inference import Candidates, Engine

_ROWS = 16


@register_model("gpt4jax")
class Gpt4Jax(LM):
    """The harness's model.

    Args:
        weights: as `weights.load` takes them.
        max_len: tokens of a prompt to continue and its continuation.
    """

    def __init__(self, weights: str, max_len: int = 2048, **unused: Any):
        super().__init__()
        loaded = weight_files.load(weights)
        max_len = min(int(max_len), loaded.config.max_seq_len)
        self._engine = Engine(
            loaded.config, loaded.params, tokenizer=loaded.tokenizer, rows=_ROWS, max_len=max_len, consume=True
        )
        self._asker = Asker(self._engine, None, _ROWS)

    def loglikelihood(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Requests of one context are read together, so that each context is read once."""
        by_context: dict[str, dict[str, None]] = {}
        for context, continuation in (request.args for request in requests):
            by_context.setdefault(context, {})[continuation] = None
        contexts = list(by_context)
        found = self._ask([Choose(context, tuple(by_context[context])) for context in contexts])
        scores: dict[tuple[str, str], tuple[float, bool]] = {}
        for context, chosen in zip(contexts, found, strict=True):
            assert isinstance(chosen, Chosen)
            pairs = zip(chosen.logprobs, chosen.greedy, strict=True)
            scores |= {(context, one): pair for one, pair in zip(by_context[context], pairs, strict=True)}
        return [scores[request.args] for request in requests]

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """Whole texts, in pieces of the model's window."""
        tokenizer = self._engine.tokenizer
        assert tokenizer is not None
        window = self._engine.config.max_seq_len
        totals = []
        for (text,) in (request.args for request in requests):
            # As the harness has it: behind the beginning of text, if the tokenizer has one, else the end of text.
            first = tokenizer.special.get(tokenizer.roles.get("bos_token", ""), tokenizer.end)
            ids = [*(tokenizer.start or (first,)), *tokenizer.encode(text)]
            pieces = [ids[at : at + window] for at in range(0, len(ids) - 1, window - 1)]
            scores = self._engine.score([Candidates((tuple(piece),), (1,)) for piece in pieces])
            totals.append(sum(score.logprob for _, (score,) in scores))
        return totals

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continuations, cut before the first stop text."""
        asked: list[Generate] = []
        before: Counter[Generate] = Counter()  # a request that is repeated draws anew
        for context, settings in (request.args for request in requests):
            stop = settings.get("until") or []
            temperature = float(settings.get("temperature", 0.0)) if settings.get("do_sample") else 0.0
            tokens = int(settings.get("max_gen_toks", 256))
            one = Generate(context, tokens, temperature, stop=tuple([stop] if isinstance(stop, str) else stop))
            asked.append(dataclasses.replace(one, sample=before[one]))
            before[one] += 1
        return [one.text for one in self._ask(asked) if isinstance(one, Generated)]

    def _ask(self, calls: Sequence[Choose | Generate]) -> Iterator[Chosen | Generated]:
        found = dict(self._asker.ask(calls))
        for i in range(len(calls)):
            output = found[i]
            if isinstance(output, TooLong):
                raise ValueError(f"a request of {output.tokens} tokens does not fit the window of {output.limit}")
            yield output
