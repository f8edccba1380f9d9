"""What the pages for this machine share: their address, and the check of the Host header.

A browser sends the name that it used for the server. A page elsewhere that points a name of its own at 127.0.0.1 ("DNS
rebinding") is recognised by that name.
"""

from __future__ import annotations

import ipaddress
from typing import Final
from urllib.parse import urlsplit

LOOPBACK: Final = "127.0.0.1"


def is_loopback(host: str) -> bool:
    """Whether a name or address, without a port, can only mean this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def names_this_machine(host_header: str) -> bool:
    """Whether the value of a Host header names this machine, with or without a port."""
    try:
        return is_loopback(urlsplit(f"//{host_header}").hostname or "")
    except ValueError:
        return False
