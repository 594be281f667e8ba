"""LoRA through peft: inject, merge, save and load adapters; the base's fingerprint; quantised bases."""
