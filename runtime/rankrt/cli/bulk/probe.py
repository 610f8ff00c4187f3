"""A process that tries to connect to a Ray cluster. Its parent ends it, for Ray tries for minutes.

It prints why the cluster cannot be used, and ends with 1.
"""

import os
import re
import socket
import sys

# A host that takes no connection within this time is not there, or a firewall drops what is sent to it.
_REACH_S = 10
# Ray tries again and again with a token that is refused, and says so in its log at once.
REFUSED_TOKEN = "InvalidAuthToken"
_NO_SERVER = "Initialization failure from server"
NO_TOKEN = (
    "it asks for a token, and this machine has none or another one. Copy the cluster's token to ~/.ray/auth_token, or"
    " set RAY_AUTH_TOKEN"
)


def main() -> None:
    """Connect, or say why not."""
    address = sys.argv[1]
    try:
        reach(address)
        connect(address)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - Ray raises RuntimeError, ValueError and others
        print(reason_of(error))
        sys.exit(1)


def reach(address: str) -> None:
    """Open a connection to an address with a port. Raises OSError at once where Ray would try for minutes."""
    if (found := re.fullmatch(r"(?:ray://)?\[?([^\[\]/]+?)\]?:(\d{1,5})", address)) is not None:
        try:
            socket.create_connection((found[1], int(found[2])), timeout=_REACH_S).close()
        except OSError as error:
            raise OSError(
                f"no connection ({error.strerror or error}). Its `ray start` printed the address; for ray:// the port"
                " is 10001 unless it was given another one"
            ) from error


def connect(address: str) -> None:
    """Connect as the parent will."""
    import ray

    os.environ["RAY_DEDUP_LOGS"] = "0"
    ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    ray.shutdown()


def reason_of(error: BaseException) -> str:
    """Return Ray's reason in a sentence. That of other versions says which of them is needed here."""
    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__) is not None:
        causes.append(cause)
    if any(REFUSED_TOKEN in str(cause) for cause in causes):
        return NO_TOKEN
    text = " ".join(str(error).split())
    if _NO_SERVER in text:
        return (
            "its server for Ray's client could not start a process for this connection. Try again; the head's"
            " /tmp/ray/session_latest/logs/ray_client_server.err tells more"
        )
    found = re.findall(r"Ray: ([\w.]+) Python: ([\w.]+)", text)
    if len(found) == 2 and found[0] != found[1]:
        (ray_there, python_there), (ray_here, python_here) = found
        return (
            f"it runs Ray {ray_there} on Python {python_there}, and here are Ray {ray_here} and Python {python_here}."
            f" Use Ray {ray_there} and Python {python_there} here"
        )
    return text or type(error).__name__


if __name__ == "__main__":
    main()
