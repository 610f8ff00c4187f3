"""Decoders against transformers: every family, behind every exit, with the prefix shared or not."""

import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tokenizers import Tokenizer

from rankrt import InputError, Reranker
from rankrt.artifact.precisions import Precision
from rankrt.backends import cpu_decoder, cpu_lanes
from rankrt.cli.main import main
from rankrt.compat import FlagLLMReranker, LayerWiseFlagLLMReranker
from rankrt.loading.open import open_model, rules_for
from rankrt.options import LoadOptions
from rankrt.text.pairs import Encoded, Pair
from rankrt_export.errors import CheckpointError, OutputError
from rankrt_export.job import checks, job
from rankrt_export.pipeline import Options, export
from rankrt_export.text.texts import Texts, parse
from rankrt_export.verify.memory import available_bytes
from tests.export.conftest import change_config, torch, transformers
from tests.export.decoders import FAMILIES, make_decoder, make_layerwise, write_tokenizer

pytestmark = pytest.mark.export

PAIRS: list[Pair] = [
    *[("why does the tide rise?", f"{text} of the moon " * n) for n, text in enumerate(["", "pull", "light", "age"])],
    ("who?", "me"),
    ("who?", "you"),
    ("alone", "with one passage " * 20),
]


def few_texts() -> Texts:
    """A row is a byte a token here: the sample's long ones would take minutes."""
    return parse(b'{"query": "why?", "pos": ["so", "so it is"], "neg": ["no", "maybe, who knows"]}', "few")


@pytest.fixture(scope="module", autouse=True)
def _few_texts() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "sample", few_texts)
        yield


@pytest.fixture(scope="module")
def layerwise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("layerwise")
    export(str(make_layerwise(folder / "minicpm")), folder / "artifact", Options(cutoff_layers=[6, 2, 3, 5]))
    return folder / "artifact"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_logit_is_the_answer_s_of_transformers(tmp_path: Path, family: str):
    folder = make_decoder(tmp_path / "checkpoint", family)
    artifact = export(str(folder), tmp_path / "artifact", Options())
    # transformers 4.57 leaves Gemma 2's bound of attention out in its other implementation.
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    model.eval()
    with Reranker.load(artifact.folder) as reranker, torch.inference_mode():
        encoded = reranker.encode(PAIRS)
        rows = [torch.tensor(encoded.row(i)[None].astype(np.int64)) for i in range(encoded.n_rows)]
        logits = np.array([model(row).logits[0, -1].numpy() for row in rows])
        answers = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
        yes_no = logits[:, answers["yes"]] - logits[:, answers["no"]]
        expected = yes_no if family == "Qwen3" else logits[:, answers["Yes"]]
        # fp32: only the order of summation differs.
        np.testing.assert_allclose(reranker.score(PAIRS), expected, atol=1e-4, rtol=0)
    assert expected.std() > 0.1


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_checkpoints_are_read_as_they_are(tmp_path: Path, dtype: str):
    folder = make_decoder(tmp_path / "checkpoint", "Gemma", dtype=dtype)
    found = export(str(folder), tmp_path / "artifact", Options()).manifest.variants[0].verification
    assert found is not None
    assert found.max_difference < 1e-3


def test_a_row_is_a_question_around_two_texts(tmp_path: Path):
    artifact = export(str(make_decoder(tmp_path / "checkpoint", "Gemma")), tmp_path / "artifact", Options())
    with Reranker.load(artifact.folder) as reranker:
        tokenizer = Tokenizer.from_file(str(artifact.path("tokenizer.json")))
        text = tokenizer.decode(reranker.encode([("q", "p")]).row(0).tolist(), skip_special_tokens=False)
        assert text.startswith("<s>A: q\nB: p\nGiven a query A and a passage B")
        other = reranker.with_rules(question="Same meaning?", query_instruction="", passage_instruction="")
        text = tokenizer.decode(other.encode([("q", "p")]).row(0).tolist(), skip_special_tokens=False)
        assert text == "<s>q\np\nSame meaning?"


def load_unshared(folder: Path, **options: Any) -> Reranker:
    """Load a reranker that computes each row whole."""
    model = open_model(folder, LoadOptions(**options), shares_prefixes=False)
    return Reranker(model, rules_for(model.placement.artifact, {}))


def test_every_exit_has_its_figures_and_its_order(layerwise: Path):
    with Reranker.load(layerwise) as reranker:
        exits = reranker.variant.exits
        assert [end.layer for end in exits] == [2, 3, 5, 6]
        assert all(end.verification and end.verification.max_difference < 1e-4 for end in exits)
        logits = reranker.score(PAIRS, cutoff_layers=[6, 2, 6, 3])
        assert logits.shape == (3, len(PAIRS))
        np.testing.assert_array_equal(logits[-1], reranker.score(PAIRS))
        assert np.abs(np.diff(logits, axis=0)).min(axis=1).max() > 0


def test_a_score_is_bitwise_the_same_at_any_depth_in_any_company_prefix_shared_or_not(layerwise: Path):
    with (
        Reranker.load(layerwise, n_threads=2) as reranker,
        load_unshared(layerwise, n_threads=1, prepare=False) as unshared,
    ):
        together = reranker.score(PAIRS, cutoff_layers=[2, 3, 5, 6])
        assert unshared.score(PAIRS, cutoff_layers=[2, 3, 5, 6]).tobytes() == together.tobytes()
        for layer, expected in zip([2, 3, 5, 6], together, strict=True):
            cut = reranker.with_cutoff(layer)
            assert cut.score(PAIRS[::-1])[::-1].tobytes() == expected.tobytes()
            assert np.concatenate([cut.score([pair]) for pair in PAIRS]).tobytes() == expected.tobytes()
        many = [(PAIRS[0][0], f"{i} " * i) for i in range(60)]
        assert reranker.score(many).tobytes() == unshared.score(many).tobytes()


@pytest.mark.parametrize("is_wide", [True, False])
def test_rows_that_are_told_to_run_together_have_the_same_bits(layerwise: Path, is_wide: bool):
    """As a server runs them: it plans itself, and may put rows of several queries into one run."""
    with Reranker.load(layerwise, n_threads=2) as reranker:
        backend, encoded = reranker._scorer().backend, reranker.encode(PAIRS)
        planned, together = backend.logits(encoded, [3, 6]), backend.run(encoded, [3, 6], is_wide=is_wide)
        assert together.values.tobytes() == planned.values.tobytes()
        assert together.n_saved_tokens == planned.n_saved_tokens > 0
        assert backend.run(encoded, is_wide=is_wide).values.tobytes() == planned.values[-1:].tobytes()


@pytest.mark.parametrize("is_wide", [False, True])
def test_a_run_finds_the_prefix_that_a_run_before_has_left(
    layerwise: Path, is_wide: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(cpu_lanes, "_IDLE_S", 600)  # on a busy machine a pause of a second drops prefixes
    many = [(PAIRS[0][0], f"{i} " * i) for i in range(20)]
    with Reranker.load(layerwise, n_threads=2) as reranker:
        expected, encoded = reranker.score(many, cutoff_layers=[3, 6]), reranker.encode(many)
        backend, prefix = reranker._scorer().backend, int(encoded.passage_starts[0])

        def run(*numbers: int, exits: tuple[int, ...] = (3, 6)) -> int:
            rows = [encoded.row(i) for i in numbers]
            found = backend.run(Encoded.of_rows(rows, [prefix] * len(rows)), exits, is_wide=is_wide)
            assert found.values.tobytes() == expected[2 - len(exits) :, numbers].tobytes()
            return found.n_saved_tokens

        assert run(0, 1, 2) == 2 * prefix, "the first run of a query computes the prefix"
        assert run(3, 4) == 2 * prefix, "later ones do not"
        assert run(*range(5, 20), exits=(6,)) == 15 * prefix
        reranker.score([("another", "query")])
        assert run(1) == prefix


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each run of a decoder's first segment computes, from now on; nothing is dropped in a pause."""
    monkeypatch.setattr(cpu_lanes, "_IDLE_S", 600)
    found: list[int] = []
    through = cpu_decoder.Segments.through

    def counted(self: Any, sessions: Any, batch: cpu_decoder.Batch, *rest: Any, **options: Any) -> Any:
        found.append(int(batch.offsets[-1]))
        return through(self, sessions, batch, *rest, **options)

    monkeypatch.setattr(cpu_decoder.Segments, "through", counted)
    return found


LONG = "which of these sentences says anything at all about "


def test_a_run_takes_what_it_begins_with_from_a_run_of_another_query(layerwise: Path, computed: list[int]):
    pairs: list[Pair] = [(f"{LONG}{end}", f"{n} pull " * n) for end in ("tides", "sea") for n in range(4)]
    pairs += [(f"{LONG}{end}", "the moon pulls") for end in ("me", "rivers")]
    with Reranker.load(layerwise) as reranker, load_unshared(layerwise) as unshared:
        expected, encoded = unshared.score(pairs), reranker.encode(pairs)
        backend, starts, own = (
            reranker._scorer().backend,
            encoded.passage_starts,
            encoded.lengths - encoded.passage_starts,
        )

        def run(*numbers: int) -> int:
            """Return how many tokens a run computes."""
            computed.clear()
            rows = [encoded.row(i) for i in numbers]
            found = backend.run(Encoded.of_rows(rows, starts[list(numbers)].tolist()), is_wide=False)
            assert found.last.tobytes() == expected[list(numbers)].tobytes()
            assert sum(computed) == sum(map(len, rows)) - found.n_saved_tokens
            return sum(computed)

        n_known = len(f"<A: {LONG}")
        assert run(0, 1) == starts[0] + own[:2].sum(), "the first run of all computes its query's part"
        assert run(2, 3) == own[2:4].sum(), "later ones of the query do not"
        assert run(4, 5) == starts[4] - n_known + own[4:6].sum(), "another query computes what differs"
        assert run(6) == own[6]
        assert run(8, 9) == (starts[8:10] - n_known + own[8:10]).sum(), "each of two queries in one run"
        assert run(0) == own[0]


def test_a_prefix_stays_while_a_run_lasts_longer_than_the_pause(
    layerwise: Path, computed: list[int], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(cpu_lanes, "_IDLE_S", 0.05)
    through, has_begun = cpu_decoder.Segments.through, threading.Event()

    def slow(*arguments: Any, **options: Any) -> Any:
        if threading.current_thread() is other:
            has_begun.set()
            time.sleep(1)
        return through(*arguments, **options)

    with Reranker.load(layerwise) as reranker:
        encoded, backend = reranker.encode([*PAIRS[:2], ("another", "query")]), reranker._scorer().backend
        starts = encoded.passage_starts.tolist()

        def run(number: int) -> int:
            return backend.run(Encoded.of_rows([encoded.row(number)], [starts[number]]), is_wide=True).n_saved_tokens

        other = threading.Thread(target=run, args=(2,))
        monkeypatch.setattr(cpu_decoder.Segments, "through", slow)
        other.start()
        assert has_begun.wait(20)
        assert run(0) == 0
        time.sleep(0.3)
        assert other.is_alive(), "the machine was too slow for this test"
        assert run(1) == starts[1]
        other.join()


@pytest.mark.parametrize("family", FAMILIES)
def test_queries_that_begin_alike_have_the_bits_of_each_alone(tmp_path: Path, family: str, computed: list[int]):
    """At each length that attention's blocks of queries may leave. One family attends in windows, another has caps."""
    folder = export(str(make_decoder(tmp_path / "c", family)), tmp_path / "artifact", Options()).folder
    pairs: list[Pair] = [(LONG + "o" * n, "the moon pulls") for n in range(36)]
    with Reranker.load(folder, n_threads=2) as reranker, load_unshared(folder) as unshared:
        encoded, backend, expected = reranker.encode(pairs), reranker._scorer().backend, unshared.score(pairs)
        computed.clear()
        for n_rows in (1, 2, 3):
            for first in range(0, len(pairs), n_rows):
                rows = [encoded.row(i) for i in range(first, first + n_rows)]
                starts = encoded.passage_starts[first : first + n_rows].tolist()
                found = backend.run(Encoded.of_rows(rows, starts), is_wide=bool(first % 2))
                assert found.last.tobytes() == expected[first : first + n_rows].tobytes()
        assert sum(computed) < 0.9 * 3 * len(encoded.ids)
        for some in (pairs, pairs[3::7], pairs[5::9] * 3):
            assert reranker.score(some).tobytes() == unshared.score(some).tobytes()


def test_the_library_computes_once_what_its_queries_begin_with(layerwise: Path, computed: list[int]):
    pairs: list[Pair] = [(f"{LONG}{end}", "the moon pulls") for end in ("tides", "sea", "rivers", "winter")]
    with Reranker.load(layerwise) as reranker, load_unshared(layerwise) as unshared:
        encoded = reranker.encode(pairs)
        found = reranker._scorer().backend.logits(encoded)
        assert found.n_saved_tokens == 3 * len(f"<A: {LONG}")
        assert sum(computed) == len(encoded.ids) - found.n_saved_tokens
        assert found.last.tobytes() == unshared.score(pairs).tobytes()


def test_what_sharing_the_prefix_saves_is_counted(layerwise: Path):
    passages = [passage for _, passage in PAIRS]
    with Reranker.load(layerwise) as shared, load_unshared(layerwise) as unshared:
        some, all_ = shared.rank("why?", passages), unshared.rank("why?", passages)
        assert [hit.index for hit in some] == [hit.index for hit in all_]
        prefix = shared.encode([("why?", "")]).passage_starts[0]
        assert some.n_saved_tokens == (len(passages) - 1) * prefix
        assert (all_.n_saved_tokens, all_.n_tokens) == (0, some.n_tokens + some.n_saved_tokens)


def test_a_progressive_ranking_has_the_scores_of_the_full_one(layerwise: Path):
    passages = [f"the tide and the moon {i} " * (i % 5) for i in range(40)]
    with Reranker.load(layerwise) as reranker:
        full = reranker.rank("why?", passages, top_n=5)
        exact = reranker.rank("why?", passages, top_n=5, progressive="exact")
        loose = reranker.rank("why?", passages, top_n=5, progressive=0.8)
    assert exact.progress is not None
    assert loose.progress is not None
    assert exact.progress.layers == (2, 3, 5, 6)
    assert loose.progress.n_documents[0] == 40 >= loose.progress.n_documents[-1] >= 5
    scores = {hit.index: hit.score for hit in full}
    assert all(hit.score == scores[hit.index] for hit in (*exact, *loose) if hit.index in scores)


@pytest.mark.parametrize("options", [{}, {"top_n": 2, "refine": "fp32"}])
def test_a_progressive_ranking_needs_a_top(layerwise: Path, options: dict[str, Any]):
    with Reranker.load(layerwise) as reranker, pytest.raises(InputError, match="progressive needs top_n"):
        reranker.rank("why?", ["a", "b"], progressive=True, **options)


def test_the_command_ranks_progressively(layerwise: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "documents.txt").write_text("\n".join(f"passage {i}" for i in range(9)))
    arguments = ["rerank", str(layerwise), "--query", "why?", "--documents", str(tmp_path / "documents.txt")]
    assert main([*arguments, "--top-n", "2", "--progressive", "--cutoff-layer", "5", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["progress"]["layers"] == [2, 3, 5]
    assert len(answer["results"]) == 2
    assert main(["info", str(layerwise)]) == 0
    assert "scores can be read after these layers" in capsys.readouterr().out


@pytest.mark.parametrize("precision", ["w8", "int8", "int4"])
def test_integers_are_bitwise_the_same_in_every_company_too(tmp_path: Path, precision: Precision):
    options = Options(precisions=["fp32", precision], cutoff_layers=[3, 6], max_difference=9.0, min_tau=-1.0)
    artifact = export(str(make_layerwise(tmp_path / "checkpoint")), tmp_path / "artifact", options)
    found = next(variant for variant in artifact.manifest.variants if variant.precision == precision)
    assert found.verification is not None
    assert found.verification.max_difference > 0
    assert precision != "int8" or (found.quantization and found.quantization.int8_share > 0.25)
    with (
        Reranker.load(artifact.folder, precision=precision, n_threads=2) as reranker,
        load_unshared(artifact.folder, precision=precision, n_threads=1) as unshared,
    ):
        together = reranker.score(PAIRS, cutoff_layers=[3, 6])
        assert unshared.score(PAIRS, cutoff_layers=[3, 6]).tobytes() == together.tobytes()
        assert np.concatenate([reranker.score([pair]) for pair in PAIRS]).tobytes() == together[1].tobytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(), r"verifying checkpoint takes about .* GB of memory, and 0.0 GB are available: .*--no-verify"),
        (Options(precisions=["int8"], is_verified=False), "calibrating checkpoint takes about"),
    ],
)
def test_too_little_memory_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: Options, message: str
):
    folder = make_decoder(tmp_path / "checkpoint", "Llama")
    monkeypatch.setattr(checks, "available_bytes", lambda: 1000)
    with pytest.raises(OutputError, match=message):
        export(str(folder), tmp_path / "artifact", options)
    assert not (tmp_path / "artifact").exists()
    export(str(folder), tmp_path / "artifact", Options(is_verified=False))


def test_memory_is_what_the_kernel_or_the_cgroup_leaves(tmp_path: Path):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9 kB\nMemAvailable:  8 kB\n")
    assert available_bytes(tmp_path) == 8192
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    for name, content in {"memory.max": "4096", "memory.current": "3000", "memory.stat": "anon 1\nfile 500"}.items():
        (tmp_path / "sys/fs/cgroup" / name).write_text(content)
    assert available_bytes(tmp_path) == 4096 - 3000 + 500
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("max\n")
    assert available_bytes(tmp_path) == 8192
    assert available_bytes(tmp_path / "nowhere") is None


def write_adapter(folder: Path, base: Path, *, n_features: int = 48) -> Path:
    """Write a LoRA of rank 2 for two layers, as peft does."""
    from safetensors.torch import save_file

    torch.manual_seed(1)
    key = "base_model.model.model.layers.1"
    shapes = {f"{key}.self_attn.q_proj": (64, n_features), f"{key}.mlp.down_proj": (n_features, 64)}
    tensors: dict[str, Any] = {}
    for name, (n_out, n_in) in shapes.items():
        tensors |= {f"{name}.lora_A.weight": torch.randn(2, n_in), f"{name}.lora_B.weight": torch.randn(n_out, 2)}
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "base_model_name_or_path": str(base), "r": 2, "lora_alpha": 1}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_an_adapter_is_merged_into_its_base(tmp_path: Path):
    from safetensors.torch import load_file, save_file

    base = make_decoder(tmp_path / "base", "Llama")
    adapter = write_adapter(tmp_path / "adapter", base)
    merged = export(str(adapter), tmp_path / "merged", Options())
    weights, lora = load_file(base / "model.safetensors"), load_file(adapter / "adapter_model.safetensors")
    for name in {key.removesuffix(".lora_A.weight") for key in lora if key.endswith("A.weight")}:
        product = lora[f"{name}.lora_B.weight"] @ lora[f"{name}.lora_A.weight"]
        weights[name.removeprefix("base_model.model.") + ".weight"] += 0.5 * product
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    by_hand = export(str(base), tmp_path / "by hand", Options(is_verified=False))
    with Reranker.load(merged.folder) as one, Reranker.load(by_hand.folder, precision="fp32") as other:
        # B @ A is summed in another order.
        np.testing.assert_allclose(one.score(PAIRS), other.score(PAIRS), atol=1e-4, rtol=0)
    assert merged.manifest.name == "adapter"


def test_weights_of_another_shape_than_the_config_says_are_refused(tmp_path: Path):
    """A width that config.json lacks is transformers' default, which is that of the family's first model."""
    path = make_decoder(tmp_path / "base", "Qwen2") / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({name: config[name] for name in config if name != "intermediate_size"}))
    message = r"layers\.0\.mlp\.gate_proj\.weight has the shape \(64, 48\), and by config\.json it is \(22016, 48\)"
    with pytest.raises(CheckpointError, match=message):
        export(str(tmp_path / "base"), tmp_path / "artifact", Options())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "IA3"}, "has peft_type = 'IA3'; only 'LORA' is implemented"),
        ({"use_dora": True}, "has use_dora, which is not implemented: merge with peft"),
        ({"base_model_name_or_path": None}, "names no base_model_name_or_path"),
        ({"r": None}, "has no r, without which an adapter has no scale"),
    ],
)
def test_an_adapter_of_another_kind_is_refused(tmp_path: Path, change: dict[str, Any], message: str):
    adapter = write_adapter(tmp_path / "adapter", make_decoder(tmp_path / "base", "Llama"))
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=message):
        export(str(adapter), tmp_path / "artifact", Options())


def test_an_adapter_that_is_damaged_is_refused(tmp_path: Path):
    from safetensors.torch import save_file

    adapter = write_adapter(tmp_path / "adapter", make_decoder(tmp_path / "base", "Llama"))
    save_file({}, adapter / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="has no tensors of a LoRA: it would change nothing"):
        export(str(adapter), tmp_path / "artifact", Options())
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has no adapter_model\.safetensors: save the adapter again"):
        export(str(adapter), tmp_path / "artifact", Options())
    (adapter / "adapter_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"adapter_config\.json is not JSON"):
        export(str(adapter), tmp_path / "artifact", Options())


def test_an_adapter_of_another_base_model_is_refused(tmp_path: Path):
    adapter = write_adapter(tmp_path / "adapter", make_decoder(tmp_path / "base", "Llama"), n_features=40)
    with pytest.raises(CheckpointError, match=r"is an adapter of another model than .*: its model.layers.1"):
        export(str(adapter), tmp_path / "artifact", Options())


def test_rows_of_a_short_model_fit_by_default(tmp_path: Path):
    folder = make_decoder(tmp_path / "checkpoint", "Gemma", max_position_embeddings=500)
    with Reranker.load(export(str(folder), tmp_path / "artifact", Options()).folder) as reranker:
        assert reranker.encode([("why?" * 80, "long " * 300)]).lengths.tolist() <= [500]
        assert np.isfinite(reranker.score([("why?", "long " * 300)])).all()


def test_a_run_may_be_longer_than_any_row(tmp_path: Path):
    folder = make_decoder(tmp_path / "checkpoint", "Gemma", max_position_embeddings=450)
    artifact = export(str(folder), tmp_path / "artifact", Options(is_verified=False))
    with Reranker.load(artifact.folder, precision="fp32", n_threads=8, prepare=False) as reranker:
        pairs = [("why?", f"so {i}") for i in range(9)]
        assert np.concatenate([reranker.score([pair]) for pair in pairs]).tobytes() == reranker.score(pairs).tobytes()


def test_no_two_values_of_a_graph_have_one_name(tmp_path: Path):
    folder = make_layerwise(tmp_path / "checkpoint", hidden_size=64)
    artifact = export(str(folder), tmp_path / "artifact", Options(cutoff_layers=[2, 3, 6], is_verified=False))
    for name in [name for variant in artifact.manifest.variants for name in variant.graphs]:
        names = names_in(onnx.load(artifact.path(name), load_external_data=False).graph)
        assert len(names) == len(set(names))


def names_in(graph: Any) -> list[str]:
    found = [value.name for value in graph.input]
    for node in graph.node:
        found += [name for name in node.output if name]
        found += [name for attribute in node.attribute if attribute.HasField("g") for name in names_in(attribute.g)]
    return found


def test_an_empty_passage_and_a_long_one_are_scored(layerwise: Path):
    with Reranker.load(layerwise, max_length=1024) as reranker:
        scores = reranker.score([("why?", ""), ("why?", "long " * 3000)])
        assert np.isfinite(scores).all()


def test_nothing_to_score_is_no_scores(layerwise: Path):
    with Reranker.load(layerwise) as reranker:
        assert reranker.score([]).shape == (0,)
        assert reranker.score([], cutoff_layers=[2, 6]).shape == (2, 0)
        assert len(reranker.rank("why?", [])) == len(reranker.rank("why?", [], top_n=3, progressive=True)) == 0


def test_windows_of_a_long_passage_say_where_they_are(layerwise: Path):
    passage = " ".join(f"word{i}" for i in range(200))
    with Reranker.load(layerwise, max_length=600, long_documents="chunk") as reranker:
        encoded = reranker.encode([("why?", passage)])
        assert (encoded.spans[0][0], encoded.spans[-1][1]) == (0, len(passage))
        tokenizer = Tokenizer.from_file(str(layerwise / "tokenizer.json"))
        for row, (start, stop) in enumerate(encoded.spans):
            text = tokenizer.decode(encoded.row(row).tolist())
            assert f"A: why?\nB: {passage[start:stop]}\nGiven a query A" in text


def test_a_cut_from_the_left_leaves_a_model_s_own_words(layerwise: Path):
    with Reranker.load(layerwise, max_length=300, truncation_side="left") as reranker:
        row = reranker.encode([("why? " * 100, "word " * 200 + "end")]).row(0).tolist()
    text = Tokenizer.from_file(str(layerwise / "tokenizer.json")).decode(row)
    assert re.search(r"A: [why? ]+\nB: [word ]+ end\nGiven a query A", text)


def test_flagembedding_s_interfaces_take_their_own_options(layerwise: Path):
    reranker = LayerWiseFlagLLMReranker(str(layerwise), use_fp16=True, cutoff_layers=[3, 2])
    with Reranker.load(layerwise) as own:
        expected = own.score(PAIRS, cutoff_layers=[2, 3]).astype(np.float64)
    assert reranker.compute_score(PAIRS) == expected.tolist()
    assert reranker.compute_score(PAIRS, cutoff_layers=3) == expected[1].tolist()
    normalized = reranker.compute_score(PAIRS, cutoff_layers=[2], normalize=True)
    assert normalized == (1 / (1 + np.exp(-expected[0]))).tolist()
    llm = FlagLLMReranker(str(layerwise), prompt="Same?", query_instruction_for_rerank=None)
    assert len(llm.compute_score(["one", "two"])) == 1
    with pytest.raises(InputError, match="adapters are merged at export"):
        FlagLLMReranker(str(layerwise), peft_path="adapter")


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda r: r.score(PAIRS, cutoff_layers=[2, 4]), r"cutoff layer 4: cpu-fp32\S* was exported with 2, 3, 5, 6"),
        (lambda r: r.score(PAIRS, cutoff_layers=[]), "cutoff_layers is empty"),
        (lambda r: r.with_cutoff(40), r"cutoff layer 40: cpu-fp32\S* was exported with"),
        (
            lambda r: r.with_rules(max_length=8192),
            "makes rows of .* tokens with the prompt, but this model takes at most",
        ),
        (lambda r: r.with_rules(question="why? " * 2000), "shorten the question"),
        (lambda r: r.with_rules(query_max_length=900), "query_max_length=900 is more than max_length"),
    ],
)
def test_what_cannot_be_asked_says_what_can(layerwise: Path, ask: object, message: str):
    with Reranker.load(layerwise) as reranker, pytest.raises(InputError, match=message):
        ask(reranker)  # type: ignore[operator]


def without_heads(folder: Path) -> None:
    from safetensors.numpy import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in weights.items() if "lm_head" not in k}, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("family", "damage", "options", "message"),
    [
        (
            "Gemma",
            lambda f: write_tokenizer(f, ()),
            {},
            "the vocabulary has no token 'Yes' .*, whose logit the score is",
        ),
        ("Qwen3", lambda f: write_tokenizer(f, ("yes",)), {}, "the vocabulary has no token 'no'"),
        ("Llama", without_heads, {}, "has no lm_head.weight, and config.json does not tie it"),
        ("Gemma", lambda f: None, {"cutoff_layers": [1]}, r"has one head, after its last layer \(3\)"),
        ("Llama", lambda f: change_config(f, hidden_act="relu"), {}, "has the activation 'relu', which is not"),
        ("Llama", lambda f: change_config(f, rope_scaling={"rope_type": "yarn"}), {}, r"scaled positions \(yarn\)"),
        (
            "layerwise",
            without_heads,
            {},
            "lacks the heads lm_head.0.linear_head.weight.*it is a base model, or not a layerwise reranker",
        ),
        (
            "layerwise",
            lambda f: change_config(f, head_type="raw"),
            {},
            "that is a base model, whose heads rank nothing",
        ),
        (
            "layerwise",
            lambda f: None,
            {"cutoff_layers": [1, 4, 7]},
            "cutoff layers 1, 7: .* heads after layers 2 to 6",
        ),
    ],
)
def test_a_decoder_that_is_no_reranker_is_refused(
    tmp_path: Path, family: str, damage: object, options: dict[str, list[int]], message: str
):
    folder = tmp_path / "checkpoint"
    made = make_layerwise(folder) if family == "layerwise" else make_decoder(folder, family)
    damage(made)  # type: ignore[operator]
    with pytest.raises(CheckpointError, match=message):
        export(str(made), tmp_path / "artifact", Options(cutoff_layers=options.get("cutoff_layers")))
    assert not (tmp_path / "artifact").exists()
