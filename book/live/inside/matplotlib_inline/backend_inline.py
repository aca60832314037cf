"""What use_book_style asks for; figures are drawn by page_backend."""


def set_matplotlib_formats(*formats: str) -> None:
    """The page knows one format, SVG."""
