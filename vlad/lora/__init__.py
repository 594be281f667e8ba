"""LoRA through peft: inject, merge, save and load adapters; adapter cards, weight fingerprints, quantised bases."""
