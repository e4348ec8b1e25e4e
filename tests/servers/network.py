"""Networks of a test's own: namespaces joined by virtual cables, which Linux gives to root."""

import os

from tests.servers.base import Place, UnavailableError, run_once
from tests.servers.packages import find

PER_WORKER = False
_PROBE_TIMEOUT_S = 30.0


async def start(place: Place) -> dict[str, str]:
    """Give the path of `ip`, once a cable between two namespaces could be laid."""
    if os.geteuid() != 0:
        raise UnavailableError("only root may make network namespaces; run the tests as root")
    programs = await find(
        place, {"ip": "iproute2", "unshare": "util-linux", "nsenter": "util-linux"}
    )
    # Within a namespace that ends with the command, so that nothing is left behind.
    code, output = await run_once(
        *(programs["unshare"], "--net", programs["ip"], "link", "add", "probe0"),
        *("type", "veth", "peer", "name", "probe1"),
        timeout_s=_PROBE_TIMEOUT_S,
    )
    if code != 0:
        raise UnavailableError(
            "network namespaces with virtual cables cannot be made here; the kernel needs "
            "CONFIG_NET_NS and CONFIG_VETH (modprobe veth), and the tests CAP_SYS_ADMIN and "
            f"CAP_NET_ADMIN: {output.strip()}"
        )
    return {"NOOSPHERE_TEST_IP": programs["ip"]}
