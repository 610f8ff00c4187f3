"""The files beside the graphs: other libraries read them before they load a graph. Among them is the model card."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from rankrt.artifact.manifest import Verification
from rankrt_export.checkpoint.card import CARD
from rankrt_export.checkpoint.checkpoint import Checkpoint
from rankrt_export.checkpoint.fields import read_object
from rankrt_export.checkpoint.modules import CONFIG
from rankrt_export.checkpoint.tokenizer import write_tokenizer
from rankrt_export.portable.graphs import PortablePrecision

# Libraries that do not read tokenizer.json read these.
_COPIED = (CONFIG, "vocab.txt", "vocab.json", "merges.txt")


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphFile:
    """A graph that was written: its path in the folder, its bytes, and its figures if it was verified."""

    precision: PortablePrecision
    path: str
    n_bytes: int
    verification: Verification | None


def write_beside(checkpoint: Checkpoint, folder: Path) -> None:
    """Write config.json and the tokenizer's files: transformers, sentence-transformers and fastembed want all four."""
    from transformers import AutoTokenizer

    write_tokenizer(checkpoint, folder / "tokenizer.json")
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder, trust_remote_code=False)
    named = {name: token for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    config = dict(read_object(checkpoint.folder / "config.json"))
    config.pop("auto_map", None)  # no graph needs the code that it names
    config.setdefault("pad_token_id", tokenizer.pad_token_id or 0)
    said = {**named, **checkpoint.tokenizer_config, "model_max_length": checkpoint.max_length}
    _write(folder / "config.json", config)
    _write(folder / "tokenizer_config.json", said)
    _write(folder / "special_tokens_map.json", named)
    for name in _COPIED:
        if (original := checkpoint.folder / name).is_file():
            (folder / name).write_bytes(original.read_bytes())


def write_card(checkpoint: Checkpoint, folder: Path, files: Sequence[GraphFile]) -> None:
    """Write the model card: the model's source, the figures of each file, and how to load them."""
    (folder / CARD).write_text(f"---\n{_front_matter(checkpoint)}\n---\n{_text(checkpoint, files)}", encoding="utf-8")


def _front_matter(checkpoint: Checkpoint) -> str:
    data = ModelCardData(
        base_model=checkpoint.id if "/" in checkpoint.id else None,
        language=list(checkpoint.card.languages) or None,
        library_name="sentence-transformers",
        license=checkpoint.card.license,
        pipeline_tag="text-ranking",
        tags=["cross-encoder", "onnx", "rankrt", "reranker", "transformers.js"],
    )
    return data.to_yaml().strip()


def _text(checkpoint: Checkpoint, files: Sequence[GraphFile]) -> str:
    rows = "\n".join(
        f"| `{file.path}` | {file.precision} | {file.n_bytes / 1e6:,.0f} | {_found(file)} |" for file in files
    )
    revision = f" at {checkpoint.revision}" if checkpoint.revision else ""
    verified = next((file.verification for file in files if file.verification), None)
    text = (
        f"Logits were compared with {verified.reference} on {verified.n_pairs} pairs of {verified.n_queries} queries."
        if verified
        else "The files were not compared with PyTorch."
    )
    best = files[0].path
    return f"""
# {checkpoint.name}, as ONNX

{checkpoint.id}{revision}, exported by rankrt {version("rankrt")}. {text}

| file | precision | MB | largest difference | Kendall's tau |
|---|---|---|---|---|
{rows}

The inputs are `input_ids`, `attention_mask` and, where the model has them, `token_type_ids`, each int64 (rows, tokens).
The output is `logits`, float32 (rows, 1). A row is a query and a passage, joined by the tokenizer.

```python
from sentence_transformers import CrossEncoder

model = CrossEncoder("FOLDER", backend="onnx", model_kwargs={{"file_name": "{Path(best).name}"}})
print(model.rank("what is a panda?", ["hi", "The giant panda is a bear."]))
```

```javascript
import {{ AutoModelForSequenceClassification, AutoTokenizer }} from "@huggingface/transformers";

const tokenizer = await AutoTokenizer.from_pretrained("FOLDER");
const model = await AutoModelForSequenceClassification.from_pretrained("FOLDER", {{ dtype: "fp32" }});
const rows = tokenizer(["what is a panda?"], {{ text_pair: ["A bear."], padding: true, truncation: true }});
console.log((await model(rows)).logits.tolist());
```
"""


def _found(file: GraphFile) -> str:
    if (found := file.verification) is None:
        return "not compared | "
    return f"{found.max_difference:.1e} | {found.mean_tau:.4f}"


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
