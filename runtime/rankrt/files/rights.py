"""Which user this process is, and the sentence for a file that this user may not open."""

import getpass
import os
import sys
from pathlib import Path

if sys.platform == "win32":

    def this_user() -> str:
        """Return the user as messages name it."""
        return getpass.getuser()

else:
    import pwd

    def this_user() -> str:
        """Return the user as messages name it. A container's uid often has no name."""
        uid = os.geteuid()
        try:
            return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
        except KeyError:
            return f"uid {uid}"


def home_folder() -> Path | None:
    """Return the user's home folder, or None for a user without HOME and without an entry in /etc/passwd."""
    try:
        return Path.home()
    except RuntimeError:
        return None


def exists(path: Path) -> bool:
    """Tell whether a path exists. Raises OSError if this user may not look; `Path.exists` of Python 3.14 denies it."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def unreadable(path: Path, error: OSError) -> str:
    """Return a sentence that says which path cannot be read, by which user and why, and the remedy if it is rights."""
    if isinstance(error, PermissionError):
        return f"{path} cannot be read as {this_user()}: permission denied. Let that user read it: chmod -R a+rX {path}"
    return f"{path} cannot be read: {error.strerror or error}"
