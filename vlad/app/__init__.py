"""The page to play with: prompt, layout to drag, picture; and pictures to edit."""
