"""Fidelity: FID, KID and CLIPScore, and the reference images they compare with."""
