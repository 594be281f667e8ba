"""The two terms of L = L_align + lambda L_diff (Eq. 8)."""
