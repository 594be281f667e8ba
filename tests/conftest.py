"""What all tests share."""

import os

from hypothesis import settings

# The same examples on every machine: green stays green. To look further: HYPOTHESIS_PROFILE=explore pytest
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.register_profile("explore", max_examples=2000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))

# No fonts but those that come along, whatever the machine has. With Noto's:
# VLAD_FONTS=/usr/share/fonts pytest tests/layout/test_fonts.py
os.environ.setdefault("VLAD_FONTS", "")
