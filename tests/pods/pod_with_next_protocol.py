"""A router pod that only supports the next version of the peers' protocol: `python -m
tests.pods.pod_with_next_protocol`.

Takes the file of `tests/pods/pod.py`.
"""

import sys

import uvloop

from router.peers.handshake import SUPPORTED_VERSIONS, ProtocolVersions
from tests.pods.pod import load_config, main

NEXT_VERSION = SUPPORTED_VERSIONS.highest + 1

if __name__ == "__main__":
    sys.exit(uvloop.run(main(load_config(), ProtocolVersions(NEXT_VERSION, NEXT_VERSION))))
