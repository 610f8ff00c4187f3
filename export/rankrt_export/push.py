"""Uploading what was exported to a repository of the hub, in one commit with a model card."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rankrt.artifact.describe import describe
from rankrt.artifact.manifest import Artifact
from rankrt_export.checkpoint.card import CARD
from rankrt_export.errors import OptionsError, OutputError


def check_login(repository: str, endpoint: str | None = None) -> None:
    """Raise OptionsError unless there is a token for the hub: before hours of export, and not after them."""
    _asked(OptionsError, f"--push {repository} needs a login", lambda api: api.whoami(), endpoint)


def push(folder: Path, repository: str, card: str | None = None, endpoint: str | None = None) -> str:
    """Upload a folder, made if it is not there, and return the commit's address. `card` is a README.md besides.

    Raises OutputError, which says that the folder itself is complete.
    """
    from huggingface_hub import CommitOperationAdd

    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    operations = [CommitOperationAdd(path.relative_to(folder).as_posix(), path) for path in files]
    if card is not None:
        operations.append(CommitOperationAdd(CARD, card.encode()))

    def upload(api: Any) -> str:
        api.create_repo(repository, exist_ok=True)
        found = api.create_commit(repository, operations, commit_message="Export with rankrt")
        return str(found.commit_url)

    address: str = _asked(OutputError, f"{folder} is complete, but could not be pushed", upload, endpoint)
    return address


def artifact_card(artifact: Artifact) -> str:
    """Return the model card of an artifact."""
    from huggingface_hub import ModelCardData

    source = artifact.manifest.source
    data = ModelCardData(
        base_model=source.id if "/" in source.id else None,
        language=list(source.languages) or None,
        library_name="rankrt",
        license=source.license,
        pipeline_tag="text-ranking",
        tags=["cross-encoder", "onnx", "rankrt", "reranker"],
    )
    return f"""---
{data.to_yaml().strip()}
---

# {artifact.manifest.name}, for rankrt

```python
from rankrt import Reranker

reranker = Reranker.load("OWNER/NAME")
print(reranker.rank("what is a panda?", ["hi", "The giant panda is a bear."]))
```

```
{describe(artifact)}
```
"""


def _asked(kind: type[Exception], what: str, ask: Callable[[Any], Any], endpoint: str | None) -> Any:
    from huggingface_hub import HfApi

    try:
        return ask(HfApi(endpoint=endpoint))
    except Exception as error:  # no token, no rights, no network, a bad name: the hub says it well, without one base
        raise kind(f"{what}: {' '.join(str(error).split())}") from error
