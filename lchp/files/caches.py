"""Where what can be made or fetched again lies."""

from pathlib import Path

import platformdirs


def user_cache() -> Path | None:
    """This package's folder in the user's cache folder ($XDG_CACHE_HOME, say); None where the user has none."""
    try:
        return Path(platformdirs.user_cache_dir("lchp"))
    except RuntimeError:  # neither HOME nor an entry in passwd
        return None
