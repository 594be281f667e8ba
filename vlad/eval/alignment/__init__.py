"""Image-text alignment benchmark: does a joint encoder read more than a bag of words?"""
