"""In the page's Python: what pages use of the package of this name, which brings half of IPython with it."""
