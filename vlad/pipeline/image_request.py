"""Image requests: prompt, seed, layout and edit of one image, checked once against what the model can generate."""

from __future__ import annotations

from dataclasses import dataclass

from vlad.layout.fonts import missing_font_reason, missing_glyphs
from vlad.layout.image_edits import Edit
from vlad.types import Layout, Prompt
from vlad.utils.errors import UserError


@dataclass(frozen=True)
class ImageRequest:
    """One image to generate, as `VLADPipeline.image_request` checks it; nothing behind that checks it again."""

    prompt: Prompt
    seed: int
    # Lines of text and their places; None: stage one plans them.
    layout: Layout | None = None
    # The image of which a masked part is generated; None: all of the image is.
    edit: Edit | None = None


def check_strings(prompt: Prompt, layout: Layout | None, max_strings: int, max_characters: int) -> None:
    """Raises UserError for too many or too long lines of text, for letters without a font, and for bad encoding."""
    try:
        prompt.text.encode()
    except UnicodeEncodeError:  # bytes of the command line in another encoding
        raise UserError(f"The prompt {prompt.text!r} is not UTF-8 text; set the terminal to UTF-8.") from None
    lines = () if layout is None else tuple(line.text for line in layout.lines)
    for source, strings in ((f"The prompt {prompt.text!r}", prompt.strings), ("The layout", lines)):
        if len(strings) > max_strings:
            raise UserError(
                f"{source} has {len(strings)} lines of text; this model writes at most {max_strings} of"
                f" {max_characters} characters: quote fewer or shorter strings."
            )
    for text in lines:
        if len(text) > max_characters:
            raise UserError(
                f'The line "{text}" of the layout has {len(text)} characters; this model writes at most'
                f" {max_characters} on a line. Shorten it, or split it into several lines."
            )
    for text in (*prompt.strings, *lines):
        if missing_glyphs(text):
            raise UserError(f'The string "{text}" cannot be rendered: {missing_font_reason(text)}.')
