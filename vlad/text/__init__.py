"""The text side: prompt decomposition, the LVLM, LoRA, spelling tokens, the Contextual Composition Module."""
