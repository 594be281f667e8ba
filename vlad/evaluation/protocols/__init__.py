"""The published protocols, a file each: strict as their scorers compute, or corrected where those err."""

from __future__ import annotations

from vlad.evaluation.protocols.anytext import ANYTEXT
from vlad.evaluation.protocols.cvtg import CVTG
from vlad.evaluation.protocols.glyphcontrol import GLYPHCONTROL
from vlad.evaluation.protocols.longtext import LONGTEXT
from vlad.evaluation.protocols.mario import MARIO
from vlad.evaluation.protocols.terms import Protocol
from vlad.evaluation.protocols.textatlas import TEXTATLAS

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol for protocol in (MARIO, ANYTEXT, CVTG, LONGTEXT, GLYPHCONTROL, TEXTATLAS)
}
