"""Tables from the layers of other libraries to ours, argument by argument."""

from . import from_timm, from_torchvision
from .peer import Peer, check, table

__all__ = ["PEERS", "Peer", "check", "table"]

PEERS = (*from_torchvision.PEERS, *from_timm.PEERS)
