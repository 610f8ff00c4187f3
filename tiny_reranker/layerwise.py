"""A small layerwise decoder that really ranks. It tests ranking that stops early without a model hub.

    python -m tiny_reranker.layerwise --data DATA --out FOLDER

It is an ordinary layerwise MiniCPM: 8 layers, 128 features, 2 heads, a score after each layer from the third on. Like
the tiny reranker's, its weights are first built by hand, because random ones hardly learn to match words. Layer 1 tells
the passage's side from the query's. Layer 2 finds the same piece on the query's side. Layer 3 gathers the matches, with
more weight for rare pieces. Then listwise steps improve all layers. Pieces and texts are the tiny reranker's.
"""

import argparse
import json
import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaModel

from rankrt.arrays import Int64Array
from rankrt_export.decoders.prompts import STYLES, prompted_template
from tiny_reranker.batches import Batch, Sampling, TokenPool, sample_group, stack, tokenized, window
from tiny_reranker.corpus import training_pools
from tiny_reranker.training import Schedule, train
from tiny_reranker.vocabulary import START_ID, Float64Array, count_pieces, rarities

TOKENIZER = Path(__file__).parent / "checkpoint"
N_LAYERS, START_LAYER, N_FEATURES, HEAD_SIZE = 8, 3, 128, 64
# These features of a head rotate so slowly with the position that a match does not depend on the distance.
_ROPE_BASE = 1e9
_SLOW = [*range(12, 32), *range(44, 64)]
# The first features of a state. A random code of the piece fills the others.
CONSTANT, IS_SEPARATOR, IS_START, RARITY, IS_PASSAGE, MATCHED, POOLED = range(7)
_CODE = slice(8, N_FEATURES)
# The constant of a normalised state has about this length, and so has its code.
_LEVEL = math.sqrt(N_FEATURES / 2)
_PASSAGE_TOKENS = (48, 64, 96)


class Layerwise(torch.nn.Module):  # type: ignore[misc]  # torch is untyped to mypy here
    """The decoder and its heads."""

    def __init__(self, n_pieces: int) -> None:
        super().__init__()
        config = LlamaConfig(
            vocab_size=n_pieces,
            hidden_size=N_FEATURES,
            intermediate_size=2 * N_FEATURES,
            num_hidden_layers=N_LAYERS,
            num_attention_heads=N_FEATURES // HEAD_SIZE,
            num_key_value_heads=N_FEATURES // HEAD_SIZE,
            max_position_embeddings=2048,
            rms_norm_eps=1e-5,
            rope_theta=_ROPE_BASE,
            pad_token_id=None,
        )
        self.model = LlamaModel(config)
        n_heads = N_LAYERS - START_LAYER + 1
        self.heads = torch.nn.Parameter(torch.zeros(n_heads, N_FEATURES))

    def forward(self, batch: Batch) -> torch.Tensor:
        """Return the scores after each layer that has a head, (n_heads, n_rows)."""
        found = self.model(batch.ids, output_hidden_states=True, use_cache=False)
        ends = batch.mask.sum(1) - 1  # a causal model does not see the padding on the right
        rows = torch.arange(len(ends))
        # The last state is normalised already.
        states = [self.model.norm(hidden[rows, ends]) for hidden in found.hidden_states[START_LAYER:-1]]
        last = torch.stack([*states, found.hidden_states[-1][rows, ends]])
        return (last * self.heads[:, None]).sum(-1)


@torch.no_grad()  # type: ignore[untyped-decorator]
def construct(n_pieces: int, rarity: Float64Array, separator: int, seed: int = 0) -> Layerwise:
    """Return a decoder whose first three layers match and gather. The others do almost nothing."""
    torch.manual_seed(seed)
    network = Layerwise(n_pieces)
    for value in network.parameters():
        value.copy_(torch.ones_like(value) if value.ndim == 1 else 0.01 * torch.randn_like(value))
    network.model.embed_tokens.weight.copy_(_embeddings(n_pieces, rarity, separator))
    layers = network.model.layers
    constant, slow = CONSTANT, _SLOW
    side = _Head(layers[0].self_attn)
    side.score(slow[0], constant, {IS_SEPARATOR: 20.0, IS_START: 10.0})
    side.copy({IS_SEPARATOR: 1.0}, IS_PASSAGE)
    match = _Head(layers[1].self_attn)
    code = torch.linalg.qr(torch.randn(N_FEATURES - _CODE.start, len(slow) - 2))[0].T
    match.compare(slow[2:], code, gain=math.sqrt(8.0))
    match.score(slow[0], constant, {IS_PASSAGE: -30.0})
    match.score(slow[1], constant, {IS_START: 12.0})
    match.copy({CONSTANT: 1.0, IS_START: -1.0}, MATCHED)
    gather = _Head(layers[2].self_attn)
    gather.score(slow[0], constant, {MATCHED: 4.0, RARITY: 3.0, IS_PASSAGE: 2.0})
    gather.score(slow[1], constant, {IS_START: 8.0})
    gather.copy({MATCHED: 1.0}, POOLED)
    network.heads[:, POOLED] = 1.0
    return network


class _Head:
    """The first head of a layer's attention, written feature by feature."""

    def __init__(self, attention: Any) -> None:
        self._attention = attention
        for layer in (attention.q_proj, attention.k_proj, attention.v_proj):
            layer.weight[:HEAD_SIZE] = 0
        attention.o_proj.weight[:, :HEAD_SIZE] = 0

    def score(self, row: int, asking: int, scores: dict[int, float]) -> None:
        """Give keys with a feature this score, for all queries."""
        self._attention.q_proj.weight[row, asking] = math.sqrt(HEAD_SIZE) / _LEVEL
        for feature, value in scores.items():
            self._attention.k_proj.weight[row, feature] = value / _LEVEL

    def compare(self, rows: Sequence[int], code: torch.Tensor, gain: float) -> None:
        """Score by the similarity of the codes."""
        for layer in (self._attention.q_proj, self._attention.k_proj):
            layer.weight[list(rows), _CODE] = gain * code

    def copy(self, features: dict[int, float], to: int) -> None:
        """Write a sum of features of the attended piece."""
        for feature, weight in features.items():
            self._attention.v_proj.weight[0, feature] = weight / _LEVEL
        self._attention.o_proj.weight[to, 0] = 1.0


def _embeddings(n_pieces: int, rarity: Float64Array, separator: int) -> torch.Tensor:
    table = torch.zeros(n_pieces, N_FEATURES)
    code = torch.randn(n_pieces, N_FEATURES - _CODE.start)
    table[:, _CODE] = code / code.norm(dim=1, keepdim=True)
    table[:, CONSTANT] = 1
    table[:, RARITY] = torch.from_numpy(0.3 * rarity).float()
    for piece, feature in ((separator, IS_SEPARATOR), (START_ID, IS_START)):
        table[piece, _CODE] = 0
        table[piece, feature] = 1
    return table


def prompted_batches(
    pools: Sequence[TokenPool], tokenizer: Tokenizer, rarity: Float64Array, *, n_groups: int, seed: int
) -> Iterator[Batch]:
    """Yield batches of rows with FlagEmbedding's prompt, without end."""
    random, sampling = Random(seed), Sampling()
    template = prompted_template(tokenizer, STYLES["flagembedding"], {"bos_token": "<s>", "pad_token": "<pad>"})
    words = [np.array(tokenizer.encode(text, add_special_tokens=False).ids, np.int64) for text in ("A:", "B:")]
    prefix, separator, suffix = (
        np.array(ids, np.int64) for ids in (template.prefix, template.separator, template.suffix)
    )
    while True:
        n_tokens = random.choice(_PASSAGE_TOKENS)
        rows: list[Int64Array] = []
        for pool in random.choices(pools, [pool.weight for pool in pools], k=n_groups):
            group = sample_group(pool, sampling, random)
            passages = [window(group.question, passage, n_tokens, rarity) for passage in group.passages]
            left = [prefix, words[0], group.question, separator, words[1]]
            rows += [np.concatenate([*left, passage, suffix]) for passage in passages]
        yield stack(rows, n_groups)


def save(network: Layerwise, folder: Path) -> None:
    """Write the checkpoint as a layerwise MiniCPM, without scaling of residuals and embeddings."""
    config = network.model.config
    folder.mkdir(parents=True)
    tensors = {f"model.{name}": value.contiguous() for name, value in network.model.state_dict().items()}
    tensors |= {f"lm_head.{i}.linear_head.weight": head[None].clone() for i, head in enumerate(network.heads.detach())}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    described = {
        "architectures": ["LayerWiseMiniCPMForCausalLM"],
        "model_type": "minicpm",
        **{name: getattr(config, name) for name in (*names, "num_key_value_heads", "max_position_embeddings")},
        "rms_norm_eps": config.rms_norm_eps,
        "hidden_act": "silu",
        "rope_theta": _ROPE_BASE,
        "scale_emb": 1,
        "scale_depth": math.sqrt(N_LAYERS),
        "start_layer": START_LAYER,
        "head_multi": True,
        "head_type": "simple",
    }
    (folder / "config.json").write_text(json.dumps(described, indent=2) + "\n")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(TOKENIZER / name, folder / name)


def main() -> None:
    """Construct, train and write the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of data sets (see corpus.py)")
    parser.add_argument("--out", type=Path, required=True, help="the folder for the checkpoint")
    parser.add_argument("--steps", type=int, default=600, help="of fine-tuning (default %(default)s)")
    parser.add_argument("--groups", type=int, default=10, help="of a batch (default %(default)s)")
    parser.add_argument("--rate", type=float, default=5e-4, help="of learning (default %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pools = training_pools(options.data)
    tokenizer = Tokenizer.from_file(str(TOKENIZER / "tokenizer.json"))
    counts = count_pieces(tokenizer, (text for pool in pools for text in pool.passages.values()))
    rarity = rarities(counts)
    token_pools = [tokenized(pool, tokenizer, Sampling()) for pool in pools]
    separator = prompted_template(tokenizer, STYLES["flagembedding"], {}).separator[-1]
    network = construct(tokenizer.get_vocab_size(), rarity, separator)
    batches = prompted_batches(token_pools, tokenizer, rarity, n_groups=options.groups, seed=0)
    if options.steps:
        schedule = Schedule(n_steps=options.steps, learning_rate=options.rate)
        train(network, batches, schedule, score=lambda model, batch: model(batch))
    save(network.eval(), options.out)


if __name__ == "__main__":
    main()
