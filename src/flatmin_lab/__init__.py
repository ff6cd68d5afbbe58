"""flatmin's laboratory: honest comparisons and reproductions on top of the library, behind the command ``flatmin``."""
