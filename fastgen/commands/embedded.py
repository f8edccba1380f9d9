"""Commands on the embedded server."""

from __future__ import annotations

from fastgen.commands.environment import cache_dir
from fastgen.display import put


def status() -> int:
    """Show whether the embedded server is set up, where, its versions and its size."""
    from fastgen.embedded import embedded_status as read

    found = read(cache_dir())
    versions = ", ".join(f"{name} {version}" for name, version in found.versions.items())
    state = f"set up ({versions})" if found.ready else "not set up; 'fastgen generate' without --base-url does that"
    put(f"{found.path}: {state}, {found.size_bytes / 1e9:.2f} GB")
    return 0


def remove() -> int:
    """Remove the embedded server's environment and model from the cache folder."""
    from fastgen.embedded import remove_embedded

    put(f"{remove_embedded(cache_dir()) / 1e9:.2f} GB freed")
    return 0
