"""Rendered posters: text-rich images with the exact polygon of every line, and captions that bind what they say.

    options, seed, index -> scene (kind, background, objects, lines) -> image, layout, caption

`scenes`: what stands where. `texts`: what it says. `typefaces`, `lettering`: how a line looks. `backgrounds`, `panels`,
`objects`: what it stands on. `captions`: a sentence that says all of it. `render`: the sample.
"""
