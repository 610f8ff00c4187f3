"""A process that tries to connect to a Ray cluster. Its parent ends it, for Ray tries for minutes.

It prints why the cluster cannot be used, and ends with 1.
"""

import os
import re
import sys


def main() -> None:
    """Connect, or say why not."""
    import ray

    os.environ["RAY_DEDUP_LOGS"] = "0"
    try:
        ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
    except (Exception, SystemExit) as error:  # noqa: BLE001 - Ray raises RuntimeError, ValueError and others
        print(reason_of(error))
        sys.exit(1)
    ray.shutdown()


def reason_of(error: BaseException) -> str:
    """Return Ray's reason in a sentence. That of other versions says which of them is needed here."""
    text = " ".join(str(error).split())
    found = re.findall(r"Ray: ([\w.]+) Python: ([\w.]+)", text)
    if len(found) == 2 and found[0] != found[1]:
        (ray_there, python_there), (ray_here, python_here) = found
        return (
            f"it runs Ray {ray_there} on Python {python_there}, and here are Ray {ray_here} and Python {python_here}."
            f" Use Python {python_there} with ray=={ray_there} here"
        )
    return text or type(error).__name__


if __name__ == "__main__":
    main()
