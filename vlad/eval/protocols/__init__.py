"""The published protocols, a file each: strict (as the published scorers compute) and corrected (where those err)."""

from __future__ import annotations

from vlad.eval.protocols.anytext import ANYTEXT
from vlad.eval.protocols.cvtg import CVTG
from vlad.eval.protocols.glyphcontrol import GLYPHCONTROL
from vlad.eval.protocols.longtext import LONGTEXT
from vlad.eval.protocols.mario_eval import MARIO
from vlad.eval.protocols.protocol import Protocol
from vlad.eval.protocols.textatlas import TEXTATLAS

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol for protocol in (MARIO, ANYTEXT, CVTG, LONGTEXT, GLYPHCONTROL, TEXTATLAS)
}
